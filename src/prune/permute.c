/* Space by space, several rounds over all. A pass over a space whose channels are columns frees one
 * place of every group at a time (place t, then t + 1...) and assigns the channels that lay there
 * anew, M assignments of in / M channels each, after a start in which channels are dealt by size
 * (largest first, to and fro over the groups) where that start leads further. A pass over a space
 * of rows alone assigns all rows to the panels at once and chooses the panels' columns again, until
 * nothing moves. */
#include <stdlib.h>

#include "prune/assignment.h"
#include "prune/permute_inside.h"

#define MOST_ROW_STEPS 8

typedef struct searcher {
    const esp_permute_job *job;
    esp_context *context;
    esp_panels *panels; /* [weight_count] */
    esp_use *uses;      /* of the present space */
    int use_count;
    const esp_space *space;
    int64_t stride; /* distance of the places that are freed together; 0: rows only */
    /* [channels of the largest space] each, new place -> old: */
    uint32_t *source_of; /* of one step */
    uint32_t *passed;    /* of the whole pass */
    uint32_t *dealt;     /* of the pass from the dealt start */
    uint32_t *scratch;
    double *benefit;
    size_t benefit_size;
    double *errors; /* [weight_count]: of layers in the present orders; and after a pass: */
    double *passed_errors;
} searcher;

/* ---- who takes part ---- */

/* An order cannot be judged place by place where it is that of rows and columns at once. */
static bool lies_on(const esp_permute_weight *weight, const esp_space_part *part, bool columns)
{
    return weight->rows != weight->columns &&
           part->axis == (columns ? weight->columns : weight->rows);
}

static void list_uses(searcher *search, const esp_space *space)
{
    search->space = space;
    search->use_count = 0;
    search->stride = 0;
    for (int64_t i = 0; i < search->job->weight_count; i++) {
        const esp_panels *panels = &search->panels[i];
        for (int k = 0; k < space->part_count; k++) {
            const esp_space_part *part = &space->parts[k];
            if (panels->m > 0 && space->unit == 1 && lies_on(panels->weight, part, true)) {
                search->uses[search->use_count++] = (esp_use){panels, part, true};
                search->stride = ESP_MAX(search->stride, panels->m);
            } else if (panels->panels > 1 && lies_on(panels->weight, part, false)) {
                search->uses[search->use_count++] = (esp_use){panels, part, false};
            }
        }
    }
}

static bool is_touched(const searcher *search, int64_t weight, bool columns_only)
{
    const esp_permute_weight *of = &search->job->weights[weight];
    for (int k = 0; k < search->space->part_count; k++) {
        int axis = search->space->parts[k].axis;
        if (of->columns == axis || (!columns_only && of->rows == axis)) {
            return true;
        }
    }
    return false;
}

static double kept_by_touched(const searcher *search)
{
    double sum = 0;
    for (int64_t i = 0; i < search->job->weight_count; i++) {
        sum += is_touched(search, i, false) ? search->panels[i].score : 0;
    }
    return sum;
}

static esp_status choose_again(searcher *search, bool columns_only, esp_error *error)
{
    for (int64_t i = 0; i < search->job->weight_count; i++) {
        if (is_touched(search, i, columns_only)) {
            ESP_TRY(esp_panels_choose(search->context, &search->panels[i], error));
        }
    }
    return ESP_OK;
}

/* ---- moving ---- */

/* Channel source_of[u] goes to place u, on all axes that the space lies on. */
static esp_status move(searcher *search, const uint32_t *source_of, esp_error *error)
{
    const esp_space *space = search->space;
    ESP_TRY(esp_space_reorder(search->job->permutation, space, source_of, error));
    ESP_TRY(esp_weights_reorder(search->context, search->job->weights, search->job->weight_count,
                                space, search->job->permutation, source_of, error));
    for (int64_t u = 0; u < space->channels; u++) {
        search->scratch[u] = search->passed[source_of[u]];
    }
    memcpy(search->passed, search->scratch, (size_t)space->channels * sizeof *search->scratch);
    return ESP_OK;
}

static void stay(const searcher *search, uint32_t *order)
{
    for (int64_t u = 0; u < search->space->channels; u++) {
        order[u] = (uint32_t)u;
    }
}

static bool is_any_moved(const searcher *search, const uint32_t *source_of)
{
    for (int64_t u = 0; u < search->space->channels; u++) {
        if (source_of[u] != u) {
            return true;
        }
    }
    return false;
}

/* Undoes all since the beginning of the pass. */
static esp_status take_back(searcher *search, esp_error *error)
{
    if (!is_any_moved(search, search->passed)) {
        return ESP_OK;
    }
    for (int64_t u = 0; u < search->space->channels; u++) {
        search->source_of[search->passed[u]] = (uint32_t)u;
    }
    ESP_TRY(move(search, search->source_of, error));
    return choose_again(search, false, error);
}

/* ---- one assignment ---- */

static esp_status take_benefit(searcher *search, int64_t sources, int64_t sinks, esp_error *error)
{
    size_t size = (size_t)sources * (size_t)sinks;
    if (size > search->benefit_size) {
        esp_release(search->context, search->benefit);
        search->benefit = esp_alloc_array(search->context, size, sizeof *search->benefit);
        search->benefit_size = search->benefit != NULL ? size : 0;
    }
    if (search->benefit == NULL) {
        return esp_fail_memory(error, size * sizeof *search->benefit, "an assignment");
    }
    memset(search->benefit, 0, size * sizeof *search->benefit);
    return ESP_OK;
}

/* channels[i]: the first channels of units that may change places; sinks[j]: of units whose places
 * differ in worth, the next `capacity[j]` of channels lying alike. */
static esp_status assign(searcher *search, const uint32_t *channels, int64_t count,
                         const uint32_t *sinks, const int64_t *capacity, int64_t sink_count,
                         uint32_t *sink_of, esp_error *error)
{
    ESP_TRY(take_benefit(search, count, sink_count, error));
    for (int i = 0; i < search->use_count; i++) {
        const esp_use *use = &search->uses[i];
        ESP_TRY(use->columns
                    ? esp_add_column_values(search->context, use, channels, count, search->benefit,
                                            error)
                    : esp_add_row_values(search->context, use, search->space->unit, channels, count,
                                         sinks, sink_count, search->benefit, error));
    }
    return esp_assign(search->context, count, sink_count, capacity, search->benefit, sink_of,
                      error);
}

/* Fills the places of sink j with the units that it got; who is there already stays. */
static void place_units(searcher *search, const uint32_t *channels, const int64_t *first,
                        const int64_t *capacity, int64_t sinks, const uint32_t *sink_of)
{
    int64_t unit = search->space->unit;
    for (int64_t j = 0; j < sinks; j++) {
        int64_t newcomer = 0;
        for (int64_t place = first[j]; place < first[j] + capacity[j]; place++) {
            int64_t source = place;
            if (sink_of[place] != (uint32_t)j) { /* leaves: the next one who comes from elsewhere */
                while (sink_of[newcomer] != (uint32_t)j ||
                       (newcomer >= first[j] && newcomer < first[j] + capacity[j])) {
                    newcomer++;
                }
                source = newcomer++;
            }
            for (int64_t i = 0; i < unit; i++) {
                search->source_of[channels[place] + i] = (uint32_t)(channels[source] + i);
            }
        }
    }
}

/* Whether two units' places are worth the same for everything. */
static bool lie_alike(const searcher *search, uint32_t a, uint32_t b)
{
    for (int i = 0; i < search->use_count; i++) {
        const esp_use *use = &search->uses[i];
        for (int64_t copy = 0; copy < use->part->copies; copy++) {
            for (int64_t inner = 0; inner < search->space->unit; inner++) {
                int64_t v = use->panels->v;
                if (use->columns || esp_space_place(use->part, a + inner, copy) / v !=
                                        esp_space_place(use->part, b + inner, copy) / v) {
                    return false;
                }
            }
        }
    }
    return true;
}

typedef struct step_lists {
    uint32_t *channels, *sinks, *sink_of; /* [units of a block] */
    int64_t *first, *capacity;
} step_lists;

/* Exchanges the listed units among each other; source_of is filled in for them. */
static esp_status exchange(searcher *search, const step_lists *lists, int64_t count,
                           esp_error *error)
{
    int64_t sinks = 0;
    for (int64_t i = 0; i < count; i++) {
        if (i > 0 && lie_alike(search, lists->channels[i - 1], lists->channels[i])) {
            lists->capacity[sinks - 1]++;
            continue;
        }
        lists->sinks[sinks] = lists->channels[i];
        lists->first[sinks] = i;
        lists->capacity[sinks++] = 1;
    }
    if (sinks < 2) {
        return ESP_OK;
    }
    ESP_TRY(assign(search, lists->channels, count, lists->sinks, lists->capacity, sinks,
                   lists->sink_of, error));
    place_units(search, lists->channels, lists->first, lists->capacity, sinks, lists->sink_of);
    return ESP_OK;
}

/* Units of a block that are exchanged in one step: all of a space of rows, else those whose places
 * are `stride` apart. Where blocks are neighbours on an axis, also the first and the last must be.
 */
static int64_t list_places(const searcher *search, int64_t block, int64_t slot, uint32_t *channels)
{
    const esp_space *space = search->space;
    int64_t count = 0, begin = block * space->block;
    if (search->stride == 0) {
        for (int64_t at = 0; at < space->block; at += space->unit) {
            channels[count++] = (uint32_t)(begin + at);
        }
        return count;
    }
    bool alone = space->block == space->channels && space->parts[0].copies == 1 &&
                 space->parts[space->part_count - 1].copies == 1;
    int64_t end = alone ? space->block : space->block - search->stride + slot + 1;
    for (int64_t at = slot; at < space->block && (at < end || at == slot); at += search->stride) {
        channels[count++] = (uint32_t)(begin + at);
    }
    return count;
}

static esp_status step(searcher *search, const step_lists *lists, int64_t slot, bool *moved,
                       esp_error *error)
{
    const esp_space *space = search->space;
    stay(search, search->source_of);
    for (int64_t block = 0; block < space->channels / space->block; block++) {
        int64_t count = list_places(search, block, slot, lists->channels);
        ESP_TRY(exchange(search, lists, count, error));
    }
    *moved = is_any_moved(search, search->source_of);
    if (!*moved) {
        return ESP_OK;
    }
    ESP_TRY(move(search, search->source_of, error));
    return choose_again(search, search->stride > 0, error);
}

static esp_status steps(searcher *search, const step_lists *lists, esp_error *error)
{
    int64_t count =
        search->stride > 0 ? ESP_MIN(search->stride, search->space->block) : MOST_ROW_STEPS;
    bool moved = true;
    for (int64_t slot = 0; slot < count && (moved || search->stride > 0); slot++) {
        ESP_TRY(step(search, lists, slot, &moved, error));
    }
    return choose_again(search, false, error);
}

/* ---- the dealt start ---- */

typedef struct sized {
    double size;
    uint32_t channel;
} sized;

static int compare_sizes(const void *a, const void *b)
{
    const sized *x = a, *y = b;
    if (x->size != y->size) {
        return x->size > y->size ? -1 : 1;
    }
    return x->channel < y->channel ? -1 : x->channel > y->channel;
}

static void add_sizes(const searcher *search, sized *channels)
{
    for (int i = 0; i < search->use_count; i++) {
        const esp_use *use = &search->uses[i];
        const esp_permute_weight *weight = use->panels->weight;
        for (int64_t row = 0; use->columns && row < weight->out; row++) {
            const float *scores = weight->scores + row * weight->in;
            for (int64_t u = 0; u < search->space->channels; u++) {
                for (int64_t copy = 0; copy < use->part->copies; copy++) {
                    channels[u].size += (double)scores[esp_space_place(use->part, u, copy)];
                }
            }
        }
    }
}

/* Within each block, largest first, to and fro over the groups; what does not fill a round of them
 * stays at the end. */
static esp_status deal(searcher *search, esp_error *error)
{
    const esp_space *space = search->space;
    sized *channels = esp_alloc_array(search->context, (size_t)space->channels, sizeof *channels);
    if (channels == NULL) {
        return esp_fail_memory(error, (size_t)space->channels * sizeof *channels, "channels");
    }
    for (int64_t u = 0; u < space->channels; u++) {
        channels[u] = (sized){0, (uint32_t)u};
    }
    add_sizes(search, channels);
    int64_t groups = space->block / search->stride;
    for (int64_t begin = 0; begin < space->channels; begin += space->block) {
        sized *own = channels + begin;
        qsort(own, (size_t)space->block, sizeof *own, compare_sizes);
        for (int64_t i = 0; i < space->block; i++) {
            int64_t round = groups > 0 ? i / groups : search->stride, at = i;
            if (round < search->stride) {
                int64_t group = round % 2 == 0 ? i % groups : groups - 1 - i % groups;
                at = group * search->stride + round;
            }
            search->source_of[begin + at] = own[i].channel;
        }
    }
    esp_release(search->context, channels);
    ESP_TRY(move(search, search->source_of, error));
    return choose_again(search, false, error);
}

/* ---- passes ---- */

static esp_status pass(searcher *search, const step_lists *lists, double *gained, esp_error *error)
{
    double before = kept_by_touched(search);
    stay(search, search->passed);
    ESP_TRY(steps(search, lists, error));
    *gained = kept_by_touched(search) - before;
    return *gained > 0 ? ESP_OK : take_back(search, error);
}

/* A pass from the dealt start, which is kept in mind and taken back. */
static esp_status try_dealt(searcher *search, const step_lists *lists, double *gained,
                            esp_error *error)
{
    double before = kept_by_touched(search);
    stay(search, search->passed);
    ESP_TRY(deal(search, error));
    ESP_TRY(steps(search, lists, error));
    *gained = kept_by_touched(search) - before;
    memcpy(search->dealt, search->passed, (size_t)search->space->channels * sizeof *search->dealt);
    return take_back(search, error);
}

/* In the first round from both starts, of which the better one is taken. */
static esp_status search_space(searcher *search, const step_lists *lists, bool first,
                               esp_error *error)
{
    double gained = 0, dealt = 0;
    if (first && search->stride > 0) {
        ESP_TRY(try_dealt(search, lists, &dealt, error));
    }
    ESP_TRY(pass(search, lists, &gained, error));
    if (dealt <= ESP_MAX(gained, 0)) {
        return ESP_OK;
    }
    ESP_TRY(take_back(search, error));
    ESP_TRY(move(search, search->dealt, error));
    return choose_again(search, false, error);
}

/* ---- errors of the pruned layers ---- */

/* 0 where nobody can tell. */
static esp_status error_of(const searcher *search, int64_t weight, double *found, esp_error *error)
{
    const esp_permute_job *job = search->job;
    ESP_TRY(job->error_of(job->error_user, weight, found, error));
    *found = *found > 0 ? *found : 0;
    return ESP_OK;
}

static esp_status judge_all(searcher *search, esp_error *error)
{
    const esp_permute_job *job = search->job;
    esp_permutation *permutation = job->permutation;
    for (int64_t i = 0; i < job->weight_count; i++) {
        ESP_TRY(error_of(search, i, &search->errors[i], error));
        permutation->judged += search->errors[i] > 0;
        permutation->error_before += search->errors[i];
    }
    permutation->error_after = permutation->error_before;
    return ESP_OK;
}

/* Whether the pass that was just made leads to smaller errors; if not, it is taken back. */
static esp_status judge_pass(searcher *search, esp_error *error)
{
    const esp_permute_job *job = search->job;
    double before = 0, after = 0;
    if (!is_any_moved(search, search->passed)) {
        return ESP_OK;
    }
    memcpy(search->passed_errors, search->errors,
           (size_t)job->weight_count * sizeof *search->errors);
    for (int64_t i = 0; i < job->weight_count; i++) {
        if (is_touched(search, i, false)) {
            ESP_TRY(error_of(search, i, &search->passed_errors[i], error));
        }
        before += search->errors[i];
        after += search->passed_errors[i];
    }
    if (!(after < before)) {
        return take_back(search, error);
    }
    memcpy(search->errors, search->passed_errors,
           (size_t)job->weight_count * sizeof *search->errors);
    job->permutation->error_after = after;
    return ESP_OK;
}

static esp_status search_all(searcher *search, const step_lists *lists, esp_error *error)
{
    const esp_permute_job *job = search->job;
    double total = (double)job->rounds * job->space_count, done = 0;
    for (int round = 0; round < job->rounds; round++) {
        for (int i = 0; i < job->space_count; i++, done++) {
            if (job->progress != NULL &&
                !job->progress(job->user, "permuting", done, total, "orders")) {
                return esp_fail(error, ESP_CANCELLED, "cancelled",
                                "permuting was interrupted; nothing was written");
            }
            list_uses(search, &job->spaces[i]);
            if (search->use_count > 0) {
                ESP_TRY(search_space(search, lists, round == 0, error));
                ESP_TRY(job->error_of != NULL ? judge_pass(search, error) : ESP_OK);
            }
        }
    }
    return ESP_OK;
}

/* ---- room ---- */

static int64_t longest(const esp_permute_job *job)
{
    int64_t most = 1;
    for (int i = 0; i < job->space_count; i++) {
        most = ESP_MAX(most, job->spaces[i].channels);
    }
    return most;
}

static bool make_room(searcher *search, step_lists *lists)
{
    esp_context *context = search->context;
    size_t most = (size_t)longest(search->job), weights = (size_t)search->job->weight_count;
    search->panels = esp_alloc_array(context, weights, sizeof *search->panels);
    search->uses = esp_alloc_array(context, weights * ESP_SPACE_MAX_PARTS, sizeof *search->uses);
    search->source_of = esp_alloc_array(context, most, sizeof *search->source_of);
    search->passed = esp_alloc_array(context, most, sizeof *search->passed);
    search->dealt = esp_alloc_array(context, most, sizeof *search->dealt);
    search->scratch = esp_alloc_array(context, most, sizeof *search->scratch);
    search->errors = esp_alloc_array(context, weights, sizeof *search->errors);
    search->passed_errors = esp_alloc_array(context, weights, sizeof *search->passed_errors);
    lists->channels = esp_alloc_array(context, most, sizeof *lists->channels);
    lists->sinks = esp_alloc_array(context, most, sizeof *lists->sinks);
    lists->sink_of = esp_alloc_array(context, most, sizeof *lists->sink_of);
    lists->first = esp_alloc_array(context, most, sizeof *lists->first);
    lists->capacity = esp_alloc_array(context, most, sizeof *lists->capacity);
    return search->panels != NULL && search->uses != NULL && search->source_of != NULL &&
           search->passed != NULL && search->dealt != NULL && search->scratch != NULL &&
           search->errors != NULL && search->passed_errors != NULL && lists->channels != NULL &&
           lists->sinks != NULL && lists->sink_of != NULL && lists->first != NULL &&
           lists->capacity != NULL;
}

static void free_room(searcher *search, step_lists *lists)
{
    for (int64_t i = 0; search->panels != NULL && i < search->job->weight_count; i++) {
        esp_release(search->context, search->panels[i].columns);
    }
    void *const all[] = {search->panels, search->uses,         search->source_of, search->passed,
                         search->dealt,  search->scratch,      search->benefit,   lists->channels,
                         lists->sinks,   lists->sink_of,       lists->first,      lists->capacity,
                         search->errors, search->passed_errors};
    for (int i = 0; i < ESP_COUNT(all); i++) {
        esp_release(search->context, all[i]);
    }
}

static double kept(const searcher *search)
{
    double sum = 0;
    for (int64_t i = 0; i < search->job->weight_count; i++) {
        sum += search->panels[i].score;
    }
    return sum;
}

static double sum_of_scores(const esp_permute_weight *weight)
{
    double sum = 0;
    for (int64_t i = 0; i < weight->out * weight->in; i++) {
        sum += (double)weight->scores[i];
    }
    return sum;
}

static esp_status search_with_room(searcher *search, const step_lists *lists, esp_error *error)
{
    const esp_permute_job *job = search->job;
    esp_permutation *permutation = job->permutation;
    permutation->all = 0;
    for (int64_t i = 0; i < job->weight_count; i++) {
        permutation->all += sum_of_scores(&job->weights[i]);
        ESP_TRY(esp_panels_make(search->context, &job->weights[i], &search->panels[i], error));
        ESP_TRY(esp_panels_choose(search->context, &search->panels[i], error));
    }
    permutation->kept_before = kept(search);
    ESP_TRY(job->error_of != NULL ? judge_all(search, error) : ESP_OK);
    ESP_TRY(search_all(search, lists, error));
    permutation->kept_after = kept(search);
    return ESP_OK;
}

esp_status esp_permute(const esp_permute_job *job, esp_error *error)
{
    searcher search = {.job = job, .context = job->context};
    step_lists lists = {0};
    esp_status status =
        make_room(&search, &lists)
            ? search_with_room(&search, &lists, error)
            : esp_fail_memory(error, (size_t)longest(job) * sizeof(int64_t), "searching orders");
    free_room(&search, &lists);
    return status;
}
