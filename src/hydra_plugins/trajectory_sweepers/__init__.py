"""Found by Hydra: the sweepers `basic` and `optuna` of `conf/hydra/sweeper/`."""
