"""TensorRT in all its families: one adapter that checks what a module can do, one builder; each is loaded only when used."""
