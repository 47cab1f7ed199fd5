"""Task sets as environments. What the processes of workers load imports neither SB3 nor torch."""
