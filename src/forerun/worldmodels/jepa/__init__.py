"""LeWorldModel: a joint-embedding predictive world model from pixels, kept from collapse by SIGReg."""
