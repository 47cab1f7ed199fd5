"""Task sets as environments. Only :mod:`.make` imports SB3 (and so torch): worker processes load the rest."""
