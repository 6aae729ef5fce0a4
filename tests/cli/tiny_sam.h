/* A small random image encoder of SAM: two layers, one of windows of 3x3 and one global, hidden 64,
 * 2 heads of 32, FFN 128, images of 32x32 in patches of 4x4, embeddings of 16 channels. */
#ifndef TESTS_CLI_TINY_SAM_H
#define TESTS_CLI_TINY_SAM_H

#include "cli/tiny_model.h"

static inline void tiny_sam_text(const tiny_model *model, const char *name, const char *text)
{
    FILE *file = tiny_open_file(model, name);
    fputs(text, file);
    tiny_close_file(file);
}

/* A tensor of a rank above 2. */
static inline void tiny_sam_deep(tiny_model *model, int rows, int columns, const char *shape,
                                 const char *name)
{
    tiny_add(model, rows, columns, "vision_encoder.%s", name);
    model->tensors[model->count - 1].shape = shape;
}

static inline void tiny_sam_linear(tiny_model *model, int out, int in, int layer, const char *name)
{
    tiny_add(model, out, in, "vision_encoder.layers.%d.%s.weight", layer, name);
    tiny_add(model, out, 0, "vision_encoder.layers.%d.%s.bias", layer, name);
}

static inline void tiny_sam_layer(tiny_model *model, int layer, int side)
{
    tiny_sam_linear(model, 64, 0, layer, "layer_norm1");
    tiny_sam_linear(model, 192, 64, layer, "attn.qkv");
    tiny_sam_linear(model, 64, 64, layer, "attn.proj");
    tiny_add(model, 2 * side - 1, 32, "vision_encoder.layers.%d.attn.rel_pos_h", layer);
    tiny_add(model, 2 * side - 1, 32, "vision_encoder.layers.%d.attn.rel_pos_w", layer);
    tiny_sam_linear(model, 64, 0, layer, "layer_norm2");
    tiny_sam_linear(model, 128, 64, layer, "mlp.lin1");
    tiny_sam_linear(model, 64, 128, layer, "mlp.lin2");
}

static inline void tiny_sam_tensors(tiny_model *model)
{
    tiny_sam_deep(model, 64, 64, "[1,8,8,64]", "pos_embed");
    tiny_sam_deep(model, 64, 48, "[64,3,4,4]", "patch_embed.projection.weight");
    tiny_add(model, 64, 0, "vision_encoder.patch_embed.projection.bias");
    tiny_sam_layer(model, 0, 3);
    tiny_sam_layer(model, 1, 8);
    tiny_sam_deep(model, 16, 64, "[16,64,1,1]", "neck.conv1.weight");
    tiny_sam_deep(model, 16, 144, "[16,16,3,3]", "neck.conv2.weight");
    for (int i = 1; i <= 2; i++) {
        tiny_add(model, 16, 0, "vision_encoder.neck.layer_norm%d.weight", i);
        tiny_add(model, 16, 0, "vision_encoder.neck.layer_norm%d.bias", i);
    }
}

static inline bool tiny_sam_write(const char *folder)
{
    tiny_model model = {.folder = folder, .kind = "sam"};
    if (mkdir(folder, 0777) != 0) {
        perror(folder);
        return false;
    }
    tiny_sam_text(&model, "config.json",
                  "{\"architectures\": [\"SamModel\"], \"model_type\": \"sam\", "
                  "\"vision_config\": {\"hidden_size\": 64,\n \"num_hidden_layers\": 2, "
                  "\"num_attention_heads\": 2, \"image_size\": 32, \"patch_size\": 4,\n "
                  "\"window_size\": 3, \"global_attn_indexes\": [1], \"output_channels\": 16, "
                  "\"mlp_dim\": 128}}\n");
    tiny_sam_text(&model, "preprocessor_config.json",
                  "{\"do_resize\": true, \"size\": {\"longest_edge\": 32}, \"resample\": 2, "
                  "\"do_pad\": true, \"pad_size\": {\"height\": 32, \"width\": 32},\n "
                  "\"image_mean\": [0.485, 0.456, 0.406], \"image_std\": [0.229, 0.224, 0.225]}\n");
    tiny_sam_tensors(&model);
    tiny_write_weights(&model);
    return true;
}

#endif
