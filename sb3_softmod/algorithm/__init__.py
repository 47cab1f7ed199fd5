"""``MultiTaskSAC`` and ``SoftModSAC``: their options, their loop, their logs. May import saving and all below."""
