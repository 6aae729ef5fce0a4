/* Which tensors of a checkpoint are linear layers.
 *
 * A folder does not say so; names and shapes do. A linear layer's weight has rank 2, a type that
 * espalier computes with, and a name that ends in ".weight". Lookup tables have that form too, and
 * the output head often is the embedding itself, so both are listed here by name and stay dense.
 * Everything else of that form counts. Layers that read a model's last state (classifier heads,
 * poolers) do too, but stay dense unless a rule names them: few bytes, of which the result depends
 * directly, and what PyTorch's users leave dense. */
#include <string.h>

#include "pipeline/pipeline.h"

static const struct {
    const char *glob, *why;
} not_linear[] = {
    {"*embed*", "embedding"}, /* embed_tokens, word_embeddings, position_embeddings, patch_embed */
    {"*wte*", "embedding"},   /* GPT-2: tokens */
    {"*wpe*", "embedding"},   /* GPT-2: positions */
    {"shared.weight", "embedding"},                  /* T5: tokens of encoder and decoder */
    {"*relative_attention_bias*", "position table"}, /* T5 */
    {"*.rel_pos_*", "position table"},               /* SAM */
    {"*.iou_token.weight", "token"},                 /* SAM's mask decoder */
    {"*.mask_tokens.weight", "token"},
    {"lm_head*", "output head"},
    {"*.lm_head*", "output head"},
    {"output.weight", "output head"},            /* the original Llama names */
    {"cls.predictions.decoder*", "output head"}, /* BERT */
};

static const struct {
    const char *glob, *why;
} outside[] = {
    {"*classifier*", "classifier head"}, /* Hugging Face; of DeiT two */
    {"head.weight", "classifier head"},  /* timm */
    {"head_dist.weight", "classifier head"},
    {"score.weight", "classifier head"},  /* decoders that classify sequences */
    {"qa_outputs.weight", "output head"}, /* answers within a text */
    {"*pooler*", "pooler"},
};

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

const char *esp_linear_layer_outside(const esp_weight_info *weight)
{
    for (int i = 0; i < ESP_COUNT(outside); i++) {
        if (esp_glob_match(outside[i].glob, weight->name)) {
            return outside[i].why;
        }
    }
    return NULL;
}

const char *esp_linear_layer_why_not(const esp_weight_info *weight)
{
    if (weight->rank != 2) {
        return "not rank 2";
    }
    for (int i = 0; i < ESP_COUNT(not_linear); i++) {
        if (esp_glob_match(not_linear[i].glob, weight->name)) {
            return not_linear[i].why;
        }
    }
    if (!ends_with(weight->name, ".weight")) {
        return "name does not end in .weight";
    }
    if (!esp_dtype_is_weight(weight->dtype)) {
        return "type is not F32, F16 or BF16";
    }
    return NULL;
}
