"""The synthetic fetus and mother that phantom.py writes as volumes: shapes, contrast, artefacts."""
