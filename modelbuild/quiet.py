"""Keeps transformers' progress bars and notices out of the build's lines."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import torch
from transformers.utils import logging


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences the libraries; caps torch's threads at the cores that this process may use."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with redirect_stderr(io.StringIO()):
        yield
