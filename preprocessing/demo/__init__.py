"""The embedded dataset: rendered egocentric video in Ego4D's formats, to try everything without a download."""

from preprocessing.demo.build import DemoDataset, generate
from preprocessing.demo.config import DemoConfig
from preprocessing.demo.render.frame_code import read_frame_code, read_video_code

__all__ = ["DemoConfig", "DemoDataset", "generate", "read_frame_code", "read_video_code"]
