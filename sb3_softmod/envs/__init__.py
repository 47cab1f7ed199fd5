"""Task sets as environments. Only :mod:`.make` and :mod:`.vec_env` import SB3 (and so torch): workers load neither."""
