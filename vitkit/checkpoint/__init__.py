"""Checkpoints: written in one commit, verified before they are believed."""

from vitkit.checkpoint.files import Checkpoint as Checkpoint
from vitkit.checkpoint.files import NewerFormat as NewerFormat
from vitkit.checkpoint.files import Unreadable as Unreadable
from vitkit.checkpoint.files import load as load
from vitkit.checkpoint.files import read_pointer as read_pointer
from vitkit.checkpoint.files import save as save
from vitkit.checkpoint.files import verify as verify
from vitkit.checkpoint.files import write_file as write_file
from vitkit.checkpoint.files import write_pointer as write_pointer
from vitkit.checkpoint.runs import entries as entries
from vitkit.checkpoint.runs import latest as latest
from vitkit.checkpoint.runs import load_latest as load_latest
