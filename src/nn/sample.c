/* Choosing the next token. Greedy takes the largest logit; otherwise softmax(logits / temperature),
 * cut to the smallest set of most probable tokens that holds top_p of the mass (Holtzman et al.,
 * arXiv 1904.09751). Sums in double and a fixed order make a seed mean the same on every machine.
 */
#include <math.h>

#include "nn/nn.h"

static int64_t largest(const float *logits, int64_t count)
{
    int32_t best = -1;
    return esp_host_argmax(NULL, NULL, logits, 1, count, &best) == ESP_OK ? best : -1;
}

static bool less_likely(const float *logits, int32_t a, int32_t b)
{
    return logits[a] != logits[b] ? logits[a] < logits[b] : a > b;
}

static void sift_down(const float *logits, int32_t *heap, int64_t at, int64_t count)
{
    int32_t moving = heap[at];
    for (int64_t child = 2 * at + 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && less_likely(logits, heap[child], heap[child + 1])) {
            child++;
        }
        if (!less_likely(logits, moving, heap[child])) {
            break;
        }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moving;
}

static double weight_of(const esp_sampler *sampler, float logit, float most)
{
    return exp(((double)logit - (double)most) / (double)sampler->temperature);
}

/* Takes candidates from the most likely on until `mass` is passed; they end up behind the heap, the
 * most likely last. Returns how many were taken, their sum in *sum. */
static int64_t take_nucleus(const esp_sampler *sampler, const float *logits, float most,
                            double mass, int32_t *heap, int64_t count, double *sum)
{
    int64_t left = count;
    *sum = 0;
    for (int64_t i = count / 2 - 1; i >= 0; i--) {
        sift_down(logits, heap, i, count);
    }
    while (left > 0 && (left == count || *sum < mass)) {
        int32_t best = heap[0];
        *sum += weight_of(sampler, logits[best], most);
        heap[0] = heap[--left];
        heap[left] = best;
        if (left > 0) {
            sift_down(logits, heap, 0, left);
        }
    }
    return count - left;
}

int64_t esp_sample(esp_sampler *sampler, const float *logits, int64_t count, int32_t *scratch)
{
    int64_t best = largest(logits, count);
    if (best < 0 || sampler->temperature == 0 || isinf(logits[best])) {
        return best;
    }
    float most = logits[best];
    double total = 0;
    int64_t candidates = 0;
    for (int64_t i = 0; i < count; i++) {
        if (logits[i] > -INFINITY) { /* false for NaN */
            total += weight_of(sampler, logits[i], most);
            scratch[candidates++] = (int32_t)i;
        }
    }
    int64_t first = 0;
    if (sampler->top_p > 0 && sampler->top_p < 1) {
        double mass = (double)sampler->top_p * total;
        first = candidates - take_nucleus(sampler, logits, most, mass, scratch, candidates, &total);
    }
    double point = esp_random_uniform(&sampler->random) * total;
    for (int64_t i = candidates - 1; i > first; i--) {
        point -= weight_of(sampler, logits[scratch[i]], most);
        if (point < 0) {
            return scratch[i];
        }
    }
    return scratch[first];
}
