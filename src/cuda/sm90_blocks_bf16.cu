// The block-sparse kernels for bf16; what they do is said in sm90_blocks.cuh.
#include "cuda/sm90_blocks.cuh"

extern "C" int gpu_sm90_blocks_bf16(const gpu_block_product *product, int tile_tokens, void *stream)
{
    return blocks::launch<true>(*product, tile_tokens, stream);
}
