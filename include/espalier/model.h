/* model.h - whole models: load a folder, turn text into tokens, run, generate. */
#ifndef ESPALIER_MODEL_H
#define ESPALIER_MODEL_H

#include <espalier/checkpoint.h>
#include <espalier/matmul.h>
#include <espalier/prune.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- tokenizer (tokenizer.json) ---- */

typedef struct esp_tokenizer esp_tokenizer;

/* Reads MODEL_DIR/tokenizer.json; parts that are not supported are refused by name ("tokenizer.*").
 */
ESP_MUST_CHECK ESP_API esp_status esp_tokenizer_open(esp_context *context, const char *model_dir,
                                                     esp_tokenizer **tokenizer, esp_error *error);
ESP_API void esp_tokenizer_close(esp_tokenizer *tokenizer);
/* One more than the largest token id. */
ESP_API int64_t esp_tokenizer_size(const esp_tokenizer *tokenizer);
/* Encodes text[length] (UTF-8; invalid bytes are replaced by U+FFFD as other tokenizers do).
 * special: apply the template (BOS). *ids is allocated by the context: esp_ids_free. */
ESP_MUST_CHECK ESP_API esp_status esp_tokenizer_encode(const esp_tokenizer *tokenizer,
                                                       const char *text, size_t length,
                                                       bool special, int32_t **ids, int64_t *count,
                                                       esp_error *error);
ESP_API void esp_ids_free(const esp_tokenizer *tokenizer, int32_t *ids);
/* Bytes of one token (not NUL-terminated, may be part of a UTF-8 sequence); NULL if the id is
 * unknown. Special tokens give length 0 unless show_special. */
ESP_API const char *esp_tokenizer_token(const esp_tokenizer *tokenizer, int32_t id,
                                        bool show_special, size_t *length);
/* The same for the tokens of a text one after the other: tokenizers that put a space before a text
 * (SentencePiece-like ones) do not print it at the start again. *place is 0 before the first token
 * and belongs to these calls. To print what goes on from a prompt, give the prompt's ids first. */
ESP_API const char *esp_tokenizer_next(const esp_tokenizer *tokenizer, int32_t id,
                                       bool show_special, int32_t *place, size_t *length);
/* Ids that the template puts before a text (BOS, CLS) and behind it (SEP); each returns the count
 * and writes at most capacity. */
ESP_API int esp_tokenizer_prefix(const esp_tokenizer *tokenizer, int32_t *ids, int capacity);
ESP_API int esp_tokenizer_suffix(const esp_tokenizer *tokenizer, int32_t *ids, int capacity);

/* ---- model ---- */

typedef struct esp_model esp_model;

/* How many forms of a sparse layer's weight are held on the device. */
typedef enum esp_memory {
    ESP_MEMORY_ONE = 0, /* the form that is faster at `tokens`: compressed, or dense with zeros */
    ESP_MEMORY_SPARSE,  /* the compressed form, whatever is faster */
    ESP_MEMORY_TWO      /* both where each is the faster at some token count up to 512 */
} esp_memory;

typedef struct esp_model_options {
    esp_compute compute;
    const char *kernel_glob; /* NULL: the fastest */
    esp_progress_fn progress;
    void *user;
    esp_memory memory;
    int64_t tokens;      /* token count of a call that matters most; 0: 1 (decoding), for images
                            those of one */
    bool require_sparse; /* "plan.dense_is_faster" from load (at `tokens`) and from every call whose
                            token count would run a sparse layer dense; implies ESP_MEMORY_SPARSE */
    bool ignore_tuning;  /* predicted times only */
} esp_model_options;

/* What a model makes of its tokens. */
typedef enum esp_model_kind {
    ESP_MODEL_DECODER = 0,  /* text that goes on: esp_session */
    ESP_MODEL_ENCODER,      /* a vector for each text: esp_embedder */
    ESP_MODEL_CLASSIFIER,   /* scores of labels for each image: esp_vision */
    ESP_MODEL_IMAGE_ENCODER /* a map of vectors for each image: esp_vision */
} esp_model_kind;

/* How an encoder's vectors of tokens become one of the text. */
typedef enum esp_pooling {
    ESP_POOLING_MEAN = 0,
    ESP_POOLING_CLS, /* the first token's */
    ESP_POOLING_MAX  /* the largest of each feature */
} esp_pooling;

typedef struct esp_model_info {
    char architecture[64];                            /* "LlamaForCausalLM" */
    int64_t layers, hidden_size, vocabulary, context; /* context: longest sequence */
    int64_t parameters;        /* logical (dense) parameters, tied weights counted once */
    int64_t linear_parameters; /* of the linear layers but embeddings and lm_head */
    size_t resident_bytes;     /* weights held on the device, and tables that stay with them */
    size_t linear_resident_bytes;
    esp_compute compute; /* what auto became */
    int32_t bos;         /* -1 if none */
    int32_t eos[16];
    int eos_count; /* from generation_config.json, else config.json */
    /* Linear layers that the checkpoint holds sparse, and of them: held dense only; in two forms */
    int64_t sparse_layers, dense_form_layers, two_form_layers;
    esp_model_kind kind;
    int64_t embedding_size;                 /* of an encoder's vectors; 0 for others */
    esp_pooling pooling;                    /* of an encoder */
    bool normalizes;                        /* an encoder's vectors have length 1 */
    int64_t image_size, patch_size, labels; /* of models of images; 0 for others */
    esp_dtype activations; /* F32; on a GPU F16 or BF16, to which inputs of products are rounded */
} esp_model_info;

/* Loads tensor by tensor, packing each at once. The device must outlive the model. Refusals:
 * "model.*" and "config.*" in docs/refused-inputs.md. */
ESP_MUST_CHECK ESP_API esp_status esp_model_load(esp_device *device,
                                                 const esp_checkpoint *checkpoint,
                                                 const esp_model_options *options,
                                                 esp_model **model, esp_error *error);
ESP_API void esp_model_free(esp_model *model);
ESP_API void esp_model_get_info(const esp_model *model, esp_model_info *info);

/* Bytes that a model takes of its device. What the device's own software takes, such as the context
 * of CUDA, is not among them. */
typedef struct esp_model_memory {
    size_t weights;     /* esp_model_info.resident_bytes */
    size_t activations; /* with caches and workspaces, of all sessions, embedders and batches of
                           images of the model: the most that there were at once so far */
} esp_model_memory;
ESP_API void esp_model_get_memory(const esp_model *model, esp_model_memory *memory);

/* A call of a model, as far as it decides which kernels run. */
typedef struct esp_model_call {
    int64_t tokens; /* that run together: of all images, texts or sequences */
    bool last_only; /* a decoder's prompt, of which only the last token is read */
} esp_model_call;
/* Names of the kernels that linear layers use in a call, most used first; returns how many
 * distinct ones there are, writes at most capacity; counts[i] is the number of layers. */
ESP_API int esp_model_kernels(const esp_model *model, esp_model_call call, const char **names,
                              int *counts, int capacity);

/* One linear layer. */
typedef struct esp_model_layer {
    const char *name; /* without ".weight"; belongs to the model */
    esp_matmul_problem problem;
    unsigned forms; /* esp_form bits that the weight holds */
    size_t resident_bytes;
    bool few; /* it stands behind the last attention and works on the tokens that are read only;
                 require_sparse does not ask what is fastest for these */
} esp_model_layer;
/* Linear layer `index` (from 0, lm_head last) as it runs in a call; false behind the last: what
 * esp_plan_explain and esp_tune take. Its token count may be larger than the call's, as the model
 * aligns its activations on the device, or smaller: behind the last attention only tokens go on
 * that are read, those of an image's classes or, with last_only, the last. */
ESP_API bool esp_model_get_layer(const esp_model *model, int64_t index, esp_model_call call,
                                 esp_model_layer *layer);

/* Weights of random numbers, for measuring a shape of which there are none. */
typedef struct esp_draw_options {
    esp_dtype dtype; /* F32, F16 or BF16, of all tensors */
    uint64_t seed;
    /* Of these: pattern, rules, skips, mask, which say how layers are pruned, as
     * esp_prune_checkpoint does it. NULL: they stay dense. */
    const esp_prune_options *prune;
} esp_draw_options;

/* A checkpoint of the tensors that folder's config.json asks for (no other file is needed), drawn
 * and pruned when they are read: it takes no memory to speak of and can be given to esp_model_load.
 * device: that the model is for. Layers of one shape have the same numbers. "config.*", "prune.*",
 * "draw.bad_dtype". */
ESP_MUST_CHECK ESP_API esp_status esp_checkpoint_draw(esp_device *device, const char *folder,
                                                      const esp_draw_options *options,
                                                      esp_checkpoint **checkpoint,
                                                      esp_error *error);

/* A sequence in progress: the KV cache and scratch. One session is used by one thread at a time. */
typedef struct esp_session esp_session;
/* capacity: most tokens that the sequence may reach (<= info.context); max_batch: most tokens given
 * to one esp_session_feed (0: 512). All memory is taken here, none per call. */
ESP_MUST_CHECK ESP_API esp_status esp_session_create(const esp_model *model, int64_t capacity,
                                                     int64_t max_batch, esp_session **session,
                                                     esp_error *error);
ESP_API void esp_session_free(esp_session *session);
ESP_API int64_t esp_session_length(const esp_session *session);
/* Forgets tokens from `length` on (<= current). */
ESP_API void esp_session_truncate(esp_session *session, int64_t length);

/* Sees intermediate results, for tests and bisecting: name "embed", "layer.0", ..., "norm". data is
 * feature-major [hidden][tokens] f32, valid during the call. */
typedef void (*esp_observe_fn)(void *user, const char *name, const float *data, int64_t features,
                               int64_t tokens);
ESP_API void esp_session_observe(esp_session *session, esp_observe_fn observe, void *user);

/* Appends `count` tokens. logits: NULL, or f32 [vocabulary] of the last token, or with all_logits
 * f32 token-major [count][vocabulary]. ESP_BAD_ARGUMENT "session.full" when it would pass capacity,
 * "session.bad_token" for an id outside the vocabulary. */
ESP_MUST_CHECK ESP_API esp_status esp_session_feed(esp_session *session, const int32_t *ids,
                                                   int64_t count, float *logits, bool all_logits,
                                                   esp_error *error);

/* One token for each of several sequences of one model, which run together: a product over many
 * tokens takes little longer than over one. The sessions are different ones; the first one's
 * max_batch holds count. logits: NULL, or f32 [count][vocabulary]. "session.not_apart", and as
 * above. */
ESP_MUST_CHECK ESP_API esp_status esp_sessions_feed(esp_session *const *sessions, int64_t count,
                                                    const int32_t *ids, float *logits,
                                                    esp_error *error);

/* The same, but what comes back is the id of each largest logit: of equals the first, and -1 where
 * none is a number. A GPU keeps the logits to itself. next: [1], and [count]. */
ESP_MUST_CHECK ESP_API esp_status esp_session_feed_greedy(esp_session *session, const int32_t *ids,
                                                          int64_t count, int32_t *next,
                                                          esp_error *error);
ESP_MUST_CHECK ESP_API esp_status esp_sessions_feed_greedy(esp_session *const *sessions,
                                                           int64_t count, const int32_t *ids,
                                                           int32_t *next, esp_error *error);

/* ---- vectors of texts ---- */

/* An encoder at work: scratch for a batch of texts. Used by one thread at a time. */
typedef struct esp_embedder esp_embedder;
/* max_tokens: most tokens of the texts that run together (0: 2048, or the model's longest text if
 * that is more). All memory is taken here. ESP_BAD_ARGUMENT "embed.no_encoder", "embed.bad_batch".
 */
ESP_MUST_CHECK ESP_API esp_status esp_embedder_create(const esp_model *model, int64_t max_tokens,
                                                      esp_embedder **embedder, esp_error *error);
ESP_API void esp_embedder_free(esp_embedder *embedder);
/* Sees "embed", "layer.0", ... of each batch: columns are the tokens of its texts, one text behind
 * the other. */
ESP_API void esp_embedder_observe(esp_embedder *embedder, esp_observe_fn observe, void *user);

/* Texts as ids, one text behind the other: text i has lengths[i] of them, 1 to the model's context.
 * vectors: [texts][embedding_size]. "embed.bad_length", "embed.bad_token". */
ESP_MUST_CHECK ESP_API esp_status esp_embed_ids(esp_embedder *embedder, const int32_t *ids,
                                                const int64_t *lengths, int64_t texts,
                                                float *vectors, esp_error *error);

typedef struct esp_text {
    const char *data; /* UTF-8 */
    size_t length;
} esp_text;

typedef struct esp_embed_result {
    int64_t tokens;    /* that ran */
    int64_t cut_texts; /* that were longer than the model's context: their ends are left out */
    double seconds;
} esp_embed_result;

/* The same of texts: each is tokenised with the template. result may be NULL. progress may be NULL.
 */
ESP_MUST_CHECK ESP_API esp_status esp_embed_texts(esp_embedder *embedder,
                                                  const esp_tokenizer *tokenizer,
                                                  const esp_text *texts, int64_t count,
                                                  esp_progress_fn progress, void *user,
                                                  float *vectors, esp_embed_result *result,
                                                  esp_error *error);

/* ---- generation ---- */

typedef struct esp_sampling {
    float temperature; /* 0: greedy */
    float top_p;       /* 0 or 1: off */
    uint64_t seed;
} esp_sampling;

typedef enum esp_stop {
    ESP_STOP_LIMIT = 0, /* max_tokens reached */
    ESP_STOP_EOS,
    ESP_STOP_CONTEXT, /* the sequence reached the session's capacity: generation ends, nothing is
                         dropped from the front */
    ESP_STOP_CALLBACK
} esp_stop;

typedef struct esp_generation {
    int64_t prompt_tokens, new_tokens;
    double prefill_seconds, decode_seconds;
    esp_stop stop;
} esp_generation;

/* Called with each new token's id, in order; false stops. */
typedef bool (*esp_token_fn)(void *user, int32_t id);

/* Feeds the prompt, then samples up to max_tokens. */
ESP_MUST_CHECK ESP_API esp_status esp_generate(esp_session *session, const int32_t *prompt,
                                               int64_t prompt_count, int64_t max_tokens,
                                               const esp_sampling *sampling, esp_token_fn on_token,
                                               void *user, esp_generation *result,
                                               esp_error *error);

/* Several prompts at once, each in a session of its own: prompts are fed one after the other, then
 * all sequences take their steps together until each has come to its end. */
typedef struct esp_prompt {
    esp_session *session;
    const int32_t *ids;
    int64_t count;
} esp_prompt;

/* Called with each new token of sequence `index`; false ends that sequence. */
typedef bool (*esp_sequence_token_fn)(void *user, int64_t index, int32_t id);

/* results: [count]; each sequence draws with its own seed, sampling->seed + index. Seconds are
 * those of all sequences together. */
ESP_MUST_CHECK ESP_API esp_status esp_generate_many(const esp_prompt *prompts, int64_t count,
                                                    int64_t max_tokens,
                                                    const esp_sampling *sampling,
                                                    esp_sequence_token_fn on_token, void *user,
                                                    esp_generation *results, esp_error *error);

#ifdef __cplusplus
}
#endif
#endif
