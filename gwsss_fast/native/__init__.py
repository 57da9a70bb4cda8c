"""The native library in C++ and CUDA (csrc/): building and loading it, and the functions that call its operators."""
