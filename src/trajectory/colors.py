"""The colours of all pictures: those of Okabe and Ito, which colour-blind readers can tell apart."""

BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#e69f00", "#009e73", "#cc79a7"
SKY, VERMILION, YELLOW = "#56b4e9", "#d55e00", "#f0e442"
COLORS = [BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW]
