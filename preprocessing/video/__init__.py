"""From a source video to chunks and clips: probe, transcode with ffmpeg, find damage, cut without re-encoding."""
