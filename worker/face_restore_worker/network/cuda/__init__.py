"""What GpenCuda is made of: fused Triton kernels, their plain PyTorch twins, graphs, memory."""
