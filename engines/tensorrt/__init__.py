"""TensorRT in all its families: one adapter that asks the module what it can do, one builder, each loaded only when used."""
