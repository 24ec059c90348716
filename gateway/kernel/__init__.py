"""The only home of kernel constants and of code that reads or changes the kernel."""
