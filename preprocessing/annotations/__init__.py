"""Annotation readers, one per format, which all return the same typed tables (`tables.Annotations`)."""

from preprocessing.annotations.config import AnnotationsConfig
from preprocessing.annotations.reading import READERS, read_annotations
from preprocessing.annotations.tables import AnnotationError, Annotations

__all__ = ["READERS", "AnnotationError", "Annotations", "AnnotationsConfig", "read_annotations"]
