"""Callbacks: what listens to a run, may ask it to stop, and writes what others read; one class, three methods."""

from __future__ import annotations

from fedsim.callbacks.base import Callback, RunView
from fedsim.callbacks.csv_file import CsvFile
from fedsim.callbacks.early_stopping import EarlyStopping
from fedsim.callbacks.mlflow_run import MLflow
from fedsim.callbacks.save_models import SaveModels
from fedsim.callbacks.wandb_run import WandB

__all__ = ["Callback", "CsvFile", "EarlyStopping", "MLflow", "RunView", "SaveModels", "WandB"]
