/* One V and M for the whole model, as Zhao et al. (arXiv 2410.16135) choose them: of each V the
 * smallest M that is fast enough, and of these pairs the one that allows most masks. Fast enough is
 * what was measured on this device, with dense kernels where they are faster. */
#include <math.h>

#include "assess/advise.h"
#include "prune/prune.h"

static bool reaches(const esp_advise_options *options, const esp_advised_point *point)
{
    if (options->stored_share != 0) {
        return point->stored_share <= options->stored_share;
    }
    if (options->whole_speedup != 0) {
        return point->whole_speedup >= options->whole_speedup;
    }
    return options->speedup != 0 && point->speedup >= options->speedup;
}

/* Layers that cannot have the pattern stay dense, in all one way. */
static void judge(esp_advice *advice, int way)
{
    esp_advised_uniform *uniform = &advice->uniform[way];
    double diversity = 0;
    for (int64_t i = 0; i < advice->count; i++) {
        const esp_advised_layer *layer = &advice->layers[i];
        const esp_advised_way *own = &layer->ways[way];
        advice->scratch[i] = own->possible ? way : 0;
        if (own->possible) {
            diversity +=
                esp_pattern_log_diversity(&own->pattern, layer->out_features, layer->in_features);
        }
    }
    *uniform = (esp_advised_uniform){.point = esp_advice_point_of(advice, advice->scratch),
                                     .log_mask_diversity = way > 0 ? diversity : (double)NAN};
    if (way > 0) {
        uniform->pattern = advice->options->patterns[way - 1];
        uniform->reaches = reaches(advice->options, &uniform->point);
    }
}

static int64_t v_of(const esp_pattern *pattern)
{
    return esp_pattern_is_2_4(pattern) ? 1 : pattern->v;
}

static int64_t m_of(const esp_pattern *pattern)
{
    return esp_pattern_is_2_4(pattern) ? 4 : pattern->m;
}

static bool is_smallest(const esp_advice *advice, int way)
{
    const esp_advised_uniform *own = &advice->uniform[way];
    bool smallest = own->reaches && !isnan(own->log_mask_diversity);
    for (int k = 1; k < advice->ways && smallest; k++) {
        const esp_advised_uniform *other = &advice->uniform[k];
        bool counts = other->reaches && !isnan(other->log_mask_diversity);
        bool same_v = v_of(&other->pattern) == v_of(&own->pattern);
        smallest = !(counts && same_v && m_of(&other->pattern) < m_of(&own->pattern));
    }
    return smallest;
}

void esp_advice_sift(esp_advice *advice)
{
    int best = 0;
    for (int way = 0; way < advice->ways; way++) {
        judge(advice, way);
    }
    for (int way = 1; way < advice->ways; way++) {
        esp_advised_uniform *own = &advice->uniform[way];
        own->smallest = is_smallest(advice, way);
        bool more = best == 0 || own->log_mask_diversity > advice->uniform[best].log_mask_diversity;
        best = own->smallest && more ? way : best;
    }
    advice->uniform[best].sifted = best > 0;
}
