"""Fine-tuning by several sites that keep their data, on NVFlare.

``site`` is what a site does with its own volumes and needs no NVFlare; ``client`` and ``server``
connect it to NVFlare; ``job`` is the command line; ``report`` compares the outcome.
"""
