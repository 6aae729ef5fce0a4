/* Inside of the tokenizer; used by src/model/tokenizer*.c only.
 *
 * A tokenizer.json describes a pipeline: added tokens cut the text, a normalizer rewrites the rest,
 * a list of steps cuts that into words, BPE or WordPiece turns each word into ids, a template adds
 * BOS. BPE has two alphabets. Byte-level files (a ByteLevel pre_tokenizer) write bytes as printable
 * characters (the GPT-2 alphabet); here everything is turned back into bytes once, while loading.
 * SentencePiece-like files (all others) are made of characters, with U+2581 for a space and tokens
 * <0x00>..<0xFF> for what has no token of its own. */
#ifndef ESP_MODEL_TOKENIZER_H
#define ESP_MODEL_TOKENIZER_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <espalier/model.h>

#include "base/base.h"

#define ESP_TOKENIZER_MAX_FILE ((size_t)64 << 20)
#define ESP_TOKENIZER_MAX_TOKENS (1 << 20) /* four times the largest vocabulary in use */
#define ESP_TOKENIZER_MAX_STEPS 16
#define ESP_TOKENIZER_MAX_TEMPLATE 16

typedef struct esp_span {
    uint32_t offset, length; /* in tokenizer->bytes */
} esp_span;

typedef struct esp_token {
    esp_span spelled;        /* what whole words are compared to */
    esp_span printed, first; /* after others and as the first token of a text */
    bool known, special;
} esp_token;

/* A character and the token that is just that. */
typedef struct esp_character {
    int32_t point, id;
} esp_character;

typedef struct esp_merge {
    uint64_t pair; /* left id in the high half */
    uint32_t rank;
    int32_t id;
} esp_merge;

typedef struct esp_added_token {
    uint32_t offset, length; /* in tokenizer->bytes: what to look for */
    int32_t id;
    bool single_word, lstrip, rstrip;
} esp_added_token;

/* Sorted by bytes, so that the longest match is found by narrowing a range byte by byte. */
typedef struct esp_added_set {
    esp_added_token *tokens;
    int64_t count;
} esp_added_set;

typedef enum esp_fold_kind { /* the Unicode forms come first */
                             ESP_FOLD_NFC = 0,
                             ESP_FOLD_NFD,
                             ESP_FOLD_NFKC,
                             ESP_FOLD_NFKD,
                             ESP_FOLD_PREPEND, /* put content before the text */
                             ESP_FOLD_REPLACE, /* put content for each match of regex, which matches
                                                  no empty text */
                             ESP_FOLD_BERT     /* the flags say what */
} esp_fold_kind;

/* One part of the normalizer. */
typedef struct esp_fold {
    esp_fold_kind kind;
    pcre2_code *regex;
    esp_span content;
    bool clean;            /* drop control characters, all white space becomes ' ' */
    bool ideographs_apart; /* put a space on both sides of each */
    bool strip_marks;      /* decompose and drop nonspacing marks */
    bool lower;
} esp_fold;

typedef enum esp_prepend {
    ESP_PREPEND_ALWAYS = 0,
    ESP_PREPEND_FIRST,
    ESP_PREPEND_NEVER
} esp_prepend;

typedef struct esp_metaspace {
    char replacement[8]; /* one character */
    esp_prepend scheme;  /* when replacement goes before a text that does not start with it */
    bool split;          /* cut before each replacement */
} esp_metaspace;

typedef enum esp_step_kind {
    ESP_STEP_SPLIT = 0,    /* cut at matches of regex */
    ESP_STEP_PREFIX_SPACE, /* put ' ' before a text that does not start with one */
    ESP_STEP_METASPACE,    /* spaces become the replacement */
    ESP_STEP_BERT          /* drop white space, cut punctuation apart */
} esp_step_kind;

typedef struct esp_step {
    esp_step_kind kind;
    pcre2_code *regex;
    bool drop_matches, drop_others;
    esp_metaspace metaspace;
} esp_step;

typedef struct esp_replace {
    esp_span from, to;
} esp_replace;

typedef struct esp_decoder {
    esp_replace replaces[ESP_TOKENIZER_MAX_STEPS];
    int replace_count;
    bool byte_fallback; /* <0xNN> prints a byte */
    bool fused;
    bool first_differs;      /* the first token of a text prints without what replaces U+2581, or
                                without the space between words (wordpiece) */
    bool wordpiece, cleanup; /* spaces between words; none before punctuation */
    bool marks_inside;       /* tokens inside a word begin with `inside`, which may be empty */
    esp_span inside;
    char strip; /* taken off the start of a text, at most strip_most times */
    int32_t strip_most;
} esp_decoder;

/* Ids sorted by the bytes of their tokens behind the first `skip` ones. */
typedef struct esp_word_list {
    int32_t *ids;
    int64_t count;
    uint32_t skip;
} esp_word_list;

struct esp_tokenizer {
    esp_context *context;
    char *path; /* of tokenizer.json, for messages */
    pcre2_general_context *regex_memory;

    esp_token *tokens; /* [size] by id */
    int64_t size;
    esp_buffer bytes;

    esp_fold folds[ESP_TOKENIZER_MAX_STEPS];
    int fold_count;
    esp_added_set raw, normalized; /* looked for before and after the normalizer */
    esp_step steps[ESP_TOKENIZER_MAX_STEPS];
    int step_count;

    bool byte_level;
    int32_t byte_ids[256];     /* -1: absent; in a file that is not byte-level those of <0xNN> */
    esp_character *characters; /* sorted by point; NULL in a byte-level file */
    int64_t character_count;
    esp_merge *merges; /* sorted by pair */
    int64_t merge_count;
    int32_t *words; /* ids sorted by bytes, when whole words are looked up first; else NULL */
    int64_t word_count;
    int32_t unknown; /* -1: none */
    bool fuse_unknown, byte_fallback;

    bool wordpiece; /* then none of the six above but `unknown`, which is there */
    esp_word_list starts, insides;
    int64_t max_word_characters;

    esp_decoder decoder;
    int32_t prefix[ESP_TOKENIZER_MAX_TEMPLATE], suffix[ESP_TOKENIZER_MAX_TEMPLATE];
    int prefix_count, suffix_count;
};

/* ---- loading: each reads one part of the file ---- */

ESP_MUST_CHECK esp_status esp_tokenizer_load_normalizer(esp_tokenizer *tokenizer,
                                                        const json_t *normalizer, esp_error *error);
/* After the steps, which say whether the file is byte-level. */
ESP_MUST_CHECK esp_status esp_tokenizer_load_decoder(esp_tokenizer *tokenizer,
                                                     const json_t *decoder, esp_error *error);
ESP_MUST_CHECK esp_status esp_tokenizer_load_vocabulary(esp_tokenizer *tokenizer,
                                                        const json_t *model,
                                                        const json_t *added_tokens,
                                                        esp_error *error);
ESP_MUST_CHECK esp_status esp_tokenizer_load_merges(esp_tokenizer *tokenizer, const json_t *model,
                                                    esp_error *error);
ESP_MUST_CHECK esp_status esp_tokenizer_load_added(esp_tokenizer *tokenizer,
                                                   const json_t *added_tokens, esp_error *error);
ESP_MUST_CHECK esp_status esp_tokenizer_load_steps(esp_tokenizer *tokenizer,
                                                   const json_t *pre_tokenizer, esp_error *error);
ESP_MUST_CHECK esp_status esp_tokenizer_load_template(esp_tokenizer *tokenizer,
                                                      const json_t *post_processor,
                                                      esp_error *error);

/* The "type" of a part, or "" when it is no object or has none. */
const char *esp_tokenizer_type(const json_t *part);
/* Optional members: the default when absent or null, "tokenizer.bad_field" for another type. */
ESP_MUST_CHECK esp_status esp_tokenizer_bool(const esp_tokenizer *tokenizer, const json_t *part,
                                             const char *key, bool fallback, bool *value,
                                             esp_error *error);
ESP_MUST_CHECK esp_status esp_tokenizer_bad_field(const esp_tokenizer *tokenizer, const char *what,
                                                  const char *expected, esp_error *error);
/* An id within limits, or "tokenizer.bad_id" naming the token. */
ESP_MUST_CHECK esp_status esp_tokenizer_id(const esp_tokenizer *tokenizer, const json_t *value,
                                           const char *token, int32_t *id, esp_error *error);
/* The members of a Metaspace, which is a pre_tokenizer and a decoder. */
ESP_MUST_CHECK esp_status esp_tokenizer_metaspace(const esp_tokenizer *tokenizer,
                                                  const json_t *part, esp_metaspace *metaspace,
                                                  esp_error *error);
/* Copies text into tokenizer->bytes. */
ESP_MUST_CHECK esp_status esp_tokenizer_keep_text(esp_tokenizer *tokenizer, const char *text,
                                                  esp_span *span, esp_error *error);
const char *esp_span_text(const esp_tokenizer *tokenizer, esp_span span);
/* Sets what a token prints, from its spelling in the file. */
ESP_MUST_CHECK esp_status esp_tokenizer_decode_token(esp_tokenizer *tokenizer, const char *spelled,
                                                     esp_token *token, esp_error *error);
/* The byte of "<0x0A>", or -1. */
int esp_tokenizer_byte_token(const char *text, size_t length);
/* Bytes of a token as the file spells it, appended to out; text that is not in the byte alphabet
 * stands for itself. */
void esp_tokenizer_unspell(const char *text, size_t length, esp_buffer *out);

/* ---- regular expressions ---- */

ESP_MUST_CHECK esp_status esp_tokenizer_compile(const esp_tokenizer *tokenizer, const char *pattern,
                                                bool literal, pcre2_code **regex, esp_error *error);
/* The pattern in PCRE2's spelling; on failure *reason is a static text. */
bool esp_regex_translate(const char *pattern, esp_buffer *out, const char **reason);

/* ---- encoding ---- */

typedef struct esp_bpe_symbol {
    int32_t id, previous, next; /* positions; -1: none. id -2: merged away */
} esp_bpe_symbol;

typedef struct esp_bpe_candidate {
    uint32_t rank, position;
    int32_t left, right, id;
} esp_bpe_candidate;

/* One call's scratch and output. */
typedef struct esp_encoder {
    const esp_tokenizer *tokenizer;
    esp_error *error;
    pcre2_match_data *match;
    pcre2_match_context *limits;
    pcre2_jit_stack *stack;
    esp_buffer prefixed;  /* copy of a piece with its prefix space */
    esp_buffer folded[2]; /* a normalized piece, and the one before */
    esp_bpe_symbol *symbols;
    esp_bpe_candidate *heap;
    size_t word_capacity; /* symbols; the heap has twice as many */
    int32_t *ids;
    size_t count, capacity;
} esp_encoder;

void esp_encoder_begin(esp_encoder *encoder, const esp_tokenizer *tokenizer, esp_error *error);
/* Frees everything but the ids. */
void esp_encoder_end(esp_encoder *encoder);
/* Rewrites *text, which may then point into the encoder. */
ESP_MUST_CHECK esp_status esp_normalize(esp_encoder *encoder, const char **text, size_t *length);
ESP_MUST_CHECK esp_status esp_encoder_push(esp_encoder *encoder, int32_t id);
/* Appends the ids of one word. */
ESP_MUST_CHECK esp_status esp_bpe_encode(esp_encoder *encoder, const char *word, size_t length);
ESP_MUST_CHECK esp_status esp_wordpiece_encode(esp_encoder *encoder, const char *word,
                                               size_t length);
ESP_MUST_CHECK esp_status esp_wordpiece_load(esp_tokenizer *tokenizer, const json_t *model,
                                             esp_error *error);
/* A character that the other library's tables know nothing of (unicode.c). */
bool esp_unicode_is_newer(int32_t point);
int esp_unicode_class(int32_t point); /* canonical combining class */
#define ESP_UNICODE_MOST_POINTS 18    /* that one character decomposes into */
/* Writes a character's full decomposition; returns its points. */
size_t esp_unicode_decompose(int32_t point, bool compatible, int32_t *points);
/* Marks behind a letter stand in the order of their classes (UAX 15). scratch: [count]. */
void esp_unicode_order_marks(int32_t *points, size_t count, int32_t *scratch);
/* What ESP_FOLD_BERT makes of text, appended to out. */
ESP_MUST_CHECK esp_status esp_bert_normalize(const esp_fold *fold, const char *text, size_t length,
                                             esp_buffer *out, esp_error *error);
/* The next word or punctuation mark at or after *from, which moves on; false: no more. */
bool esp_bert_next(const char *text, size_t length, size_t *from, size_t *start, size_t *end);
/* Next match at or after *from (which moves on); found false: no more. after_match: a match ended
 * exactly at *from, so an empty one there does not count. */
ESP_MUST_CHECK esp_status esp_regex_next(esp_encoder *encoder, const pcre2_code *regex,
                                         const char *text, size_t length, size_t *from,
                                         bool *after_match, bool *found, size_t *start,
                                         size_t *end);

/* first: the piece begins where the whole text does. */
typedef esp_status (*esp_piece_fn)(esp_encoder *encoder, const char *text, size_t length,
                                   bool first);
/* Cuts text at the added tokens of the set: pushes their ids, hands everything between to rest. */
ESP_MUST_CHECK esp_status esp_added_split(esp_encoder *encoder, const esp_added_set *set,
                                          const char *text, size_t length, bool first,
                                          esp_piece_fn rest);

/* text with each maximal invalid part replaced by U+FFFD, appended to out. */
void esp_utf8_repair(const char *text, size_t length, esp_buffer *out);
bool esp_utf8_valid(const char *text, size_t length);
/* The White_Space property. */
bool esp_utf8_is_space(int32_t point);
/* One valid code point at text; returns its bytes. */
size_t esp_utf8_next(const char *text, size_t length, int32_t *code_point);
/* NFC, NFD, NFKC or NFKD of valid text, appended to out. */
ESP_MUST_CHECK esp_status esp_utf8_normalize(const char *text, size_t length, bool composed,
                                             bool compatible, esp_buffer *out, esp_error *error);

#endif
