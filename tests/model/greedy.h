/* What greedy feeding chooses, against the logits that the same feed gives. */
#ifndef TESTS_MODEL_GREEDY_H
#define TESTS_MODEL_GREEDY_H

#include <stdlib.h>

#include <espalier/model.h>

#include "../test.h"

static inline int32_t greedy_largest(const float *logits, int64_t count)
{
    int32_t best = 0;
    for (int64_t i = 1; i < count; i++) {
        best = logits[i] > logits[best] ? (int32_t)i : best;
    }
    return best;
}

/* `count` tokens on one sequence, which is as long as before afterwards. Work that is kept runs
 * from the second of `repeats` on. */
static inline void greedy_check_one(test_run *run, esp_session *session, const int32_t *ids,
                                    int64_t count, int64_t vocabulary, int repeats)
{
    int64_t length = esp_session_length(session);
    float *logits = calloc((size_t)vocabulary, sizeof *logits);
    for (int again = 0; again < repeats; again++) {
        int32_t next = -7;
        CHECK_OK(esp_session_feed(session, ids, count, logits, false, error));
        esp_session_truncate(session, length);
        CHECK_OK(esp_session_feed_greedy(session, ids, count, &next, error));
        esp_session_truncate(session, length);
        CHECK_INT(next, greedy_largest(logits, vocabulary));
    }
    free(logits);
}

/* A token on each of at most 8 sequences. */
static inline void greedy_check_step(test_run *run, esp_session *const *sessions, int64_t count,
                                     const int32_t *ids, int64_t vocabulary, int repeats)
{
    int32_t next[8];
    int64_t length[8];
    float *logits = calloc((size_t)(count * vocabulary), sizeof *logits);
    for (int64_t k = 0; k < count; k++) {
        length[k] = esp_session_length(sessions[k]);
    }
    for (int again = 0; again < repeats; again++) {
        CHECK_OK(esp_sessions_feed(sessions, count, ids, logits, error));
        for (int64_t k = 0; k < count; k++) {
            esp_session_truncate(sessions[k], length[k]);
        }
        CHECK_OK(esp_sessions_feed_greedy(sessions, count, ids, next, error));
        for (int64_t k = 0; k < count; k++) {
            esp_session_truncate(sessions[k], length[k]);
            CHECK_INT(next[k], greedy_largest(logits + k * vocabulary, vocabulary));
        }
    }
    free(logits);
}

#endif
