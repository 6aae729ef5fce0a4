/* Every tensor that checkpoints of a family carry, with the channels that run along its dimensions,
 * also those that the family itself leaves alone (poolers, heads of pre-training): a folder goes
 * on to other programs. */
#include "model/fold.h"

#define STAY ESP_CHANNELS_STAY
#define RES ESP_CHANNELS_RESIDUAL
#define HIDDEN ESP_CHANNELS_HIDDEN
#define QUERIES ESP_CHANNELS_QUERIES
#define KEYS ESP_CHANNELS_KEYS
#define VALUES ESP_CHANNELS_VALUES
#define MIXED ESP_CHANNELS_MIXED
#define QKV ESP_CHANNELS_QKV

/* A linear layer, [rows][columns], with its bias, which is there or not. */
#define LINEAR(name, rows, columns)                                                                \
    {name ".weight", {rows, columns}},                                                             \
    {                                                                                              \
        name ".bias",                                                                              \
        {                                                                                          \
            rows                                                                                   \
        }                                                                                          \
    }
#define NORM(name)                                                                                 \
    {name ".weight", {RES}},                                                                       \
    {                                                                                              \
        name ".bias",                                                                              \
        {                                                                                          \
            RES                                                                                    \
        }                                                                                          \
    }

const esp_fold_rule esp_llama_fold[] = {
    {"model.embed_tokens.weight", {STAY, RES}},
    {"model.norm.weight", {RES}},
    {"lm_head.weight", {STAY, RES}},
    {"model.layers.#.input_layernorm.weight", {RES}},
    {"model.layers.#.post_attention_layernorm.weight", {RES}},
    LINEAR("model.layers.#.self_attn.q_proj", QUERIES, RES),
    LINEAR("model.layers.#.self_attn.k_proj", KEYS, RES),
    LINEAR("model.layers.#.self_attn.v_proj", VALUES, RES),
    LINEAR("model.layers.#.self_attn.o_proj", RES, MIXED),
    LINEAR("model.layers.#.mlp.gate_proj", HIDDEN, RES),
    LINEAR("model.layers.#.mlp.up_proj", HIDDEN, RES),
    LINEAR("model.layers.#.mlp.down_proj", RES, HIDDEN),
    {"model.layers.#.self_attn.rotary_emb.inv_freq", {STAY}},
};
const int esp_llama_fold_count = ESP_COUNT(esp_llama_fold);

/* The head of pre-training ends in the word table's columns, often that very table: what it
 * transforms into has the residual stream's order. */
#define BERT_NORM(name)                                                                            \
    NORM(name), {name ".gamma", {RES}},                                                            \
    {                                                                                              \
        name ".beta",                                                                              \
        {                                                                                          \
            RES                                                                                    \
        }                                                                                          \
    }
const esp_fold_rule esp_bert_fold[] = {
    {"embeddings.word_embeddings.weight", {STAY, RES}},
    {"embeddings.position_embeddings.weight", {STAY, RES}},
    {"embeddings.token_type_embeddings.weight", {STAY, RES}},
    BERT_NORM("embeddings.LayerNorm"),
    {"embeddings.position_ids", {STAY}},
    LINEAR("encoder.layer.#.attention.self.query", QUERIES, RES),
    LINEAR("encoder.layer.#.attention.self.key", KEYS, RES),
    LINEAR("encoder.layer.#.attention.self.value", VALUES, RES),
    LINEAR("encoder.layer.#.attention.output.dense", RES, MIXED),
    BERT_NORM("encoder.layer.#.attention.output.LayerNorm"),
    LINEAR("encoder.layer.#.intermediate.dense", HIDDEN, RES),
    LINEAR("encoder.layer.#.output.dense", RES, HIDDEN),
    BERT_NORM("encoder.layer.#.output.LayerNorm"),
    LINEAR("pooler.dense", STAY, RES),
    LINEAR("cls.predictions.transform.dense", RES, RES),
    BERT_NORM("cls.predictions.transform.LayerNorm"),
    {"cls.predictions.bias", {STAY}},
    LINEAR("cls.predictions.decoder", STAY, RES),
    LINEAR("cls.seq_relationship", STAY, STAY),
};
const int esp_bert_fold_count = ESP_COUNT(esp_bert_fold);

const esp_fold_rule esp_vit_fold[] = {
    {"embeddings.cls_token", {STAY, STAY, RES}},
    {"embeddings.distillation_token", {STAY, STAY, RES}},
    {"embeddings.mask_token", {STAY, STAY, RES}},
    {"embeddings.position_embeddings", {STAY, STAY, RES}},
    {"embeddings.patch_embeddings.projection.weight", {RES}},
    {"embeddings.patch_embeddings.projection.bias", {RES}},
    NORM("encoder.layer.#.layernorm_before"),
    LINEAR("encoder.layer.#.attention.attention.query", QUERIES, RES),
    LINEAR("encoder.layer.#.attention.attention.key", KEYS, RES),
    LINEAR("encoder.layer.#.attention.attention.value", VALUES, RES),
    LINEAR("encoder.layer.#.attention.output.dense", RES, MIXED),
    NORM("encoder.layer.#.layernorm_after"),
    LINEAR("encoder.layer.#.intermediate.dense", HIDDEN, RES),
    LINEAR("encoder.layer.#.output.dense", RES, HIDDEN),
    NORM("layernorm"),
    LINEAR("pooler.dense", STAY, RES),
    LINEAR("classifier", STAY, RES),
    LINEAR("cls_classifier", STAY, RES),
    LINEAR("distillation_classifier", STAY, RES),
};
const int esp_vit_fold_count = ESP_COUNT(esp_vit_fold);

const esp_fold_rule esp_timm_fold[] = {
    {"cls_token", {STAY, STAY, RES}},
    {"dist_token", {STAY, STAY, RES}},
    {"mask_token", {STAY, STAY, RES}},
    {"pos_embed", {STAY, STAY, RES}},
    {"patch_embed.proj.weight", {RES}},
    {"patch_embed.proj.bias", {RES}},
    NORM("blocks.#.norm1"),
    LINEAR("blocks.#.attn.qkv", QKV, RES),
    LINEAR("blocks.#.attn.proj", RES, MIXED),
    NORM("blocks.#.norm2"),
    LINEAR("blocks.#.mlp.fc1", HIDDEN, RES),
    LINEAR("blocks.#.mlp.fc2", RES, HIDDEN),
    NORM("norm"),
    LINEAR("head", STAY, RES),
    LINEAR("head_dist", STAY, RES),
};
const int esp_timm_fold_count = ESP_COUNT(esp_timm_fold);

/* The neck's second half is the model's output and stays, with prompt encoder and mask decoder. */
#define SAM_LAYER(stem, norm1, norm2)                                                              \
    NORM(stem "." norm1), LINEAR(stem ".attn.qkv", QKV, RES),                                      \
        LINEAR(stem ".attn.proj", RES, MIXED), {stem ".attn.rel_pos_h", {STAY}},                   \
        {stem ".attn.rel_pos_w", {STAY}}, NORM(stem "." norm2),                                    \
        LINEAR(stem ".mlp.lin1", HIDDEN, RES), LINEAR(stem ".mlp.lin2", RES, HIDDEN)

const esp_fold_rule esp_sam_fold[] = {
    {"pos_embed", {STAY, STAY, STAY, RES}}, {"patch_embed.projection.weight", {RES}},
    {"patch_embed.projection.bias", {RES}}, SAM_LAYER("layers.#", "layer_norm1", "layer_norm2"),
    {"neck.conv1.weight", {STAY, RES}},     {"neck.conv2.weight", {STAY}},
    LINEAR("neck.layer_norm1", STAY, STAY), LINEAR("neck.layer_norm2", STAY, STAY),
};
const int esp_sam_fold_count = ESP_COUNT(esp_sam_fold);

const esp_fold_rule esp_sam_original_fold[] = {
    {"pos_embed", {STAY, STAY, STAY, RES}}, {"patch_embed.proj.weight", {RES}},
    {"patch_embed.proj.bias", {RES}},       SAM_LAYER("blocks.#", "norm1", "norm2"),
    {"neck.0.weight", {STAY, RES}},         {"neck.2.weight", {STAY}},
    LINEAR("neck.1", STAY, STAY),           LINEAR("neck.3", STAY, STAY),
};
const int esp_sam_original_fold_count = ESP_COUNT(esp_sam_original_fold);
