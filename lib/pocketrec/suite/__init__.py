"""From a suite file to records: `spec` reads it, `plan` lists its runs, `runner` executes them, `cli` fronts it."""
