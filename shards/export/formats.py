"""The formats by name."""

from __future__ import annotations

from shards.export.job import Format
from shards.export.packages import LANCE, LITDATA, MDS
from shards.export.simple import FOLDERS, LLAVA, QWEN_VL
from shards.export.tars import FEATURES_TAR, HF

FORMATS: dict[str, Format] = {
    form.name: form for form in (FEATURES_TAR, LLAVA, QWEN_VL, FOLDERS, HF, MDS, LITDATA, LANCE)
}
