"""What every layer stands on: errors, configuration, the machine, randomness. Imports no other part of Forerun."""
