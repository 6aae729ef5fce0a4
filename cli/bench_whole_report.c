/* What is told of whole models: times, ratios, and how much of the work sparse kernels did. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench_whole.h"
#include "sizes.h"

static void name_problem(const whole_model *model, const whole_phase *phase,
                         char name[WHOLE_NAME_MAX])
{
    snprintf(name, WHOLE_NAME_MAX, "model/%s/%s/%s/%s", model->name, model->label, model->type,
             phase->name);
}

/* ---- products ---- */

static void count_layer(const cli_state *cli, const esp_model_layer *layer, double runs,
                        whole_products *products)
{
    esp_plan_options options = explain_plan_options(cli, layer->forms);
    const esp_matmul_problem *problem = &layer->problem;
    esp_plan *plan = NULL;
    if (esp_plan_create_with(cli->device, problem, &options, &plan, NULL) != ESP_OK) {
        return;
    }
    bool sparse = problem->pattern.kind != ESP_PATTERN_DENSE && !esp_plan_runs_dense(plan);
    double flops = 2.0 * (double)problem->out_features * (double)problem->in_features *
                   (double)problem->tokens * runs;
    esp_plan_reason reason = esp_plan_get_reason(plan);
    products->flops += flops;
    products->bytes += (double)layer->resident_bytes;
    products->sparse_flops += sparse ? flops : 0;
    products->sparse_bytes += sparse ? (double)layer->resident_bytes : 0;
    *(sparse ? &products->sparse_ms : &products->dense_ms) += 1e-3 * reason.us * runs;
    products->measured = products->measured && reason.tuned_tokens > 0;
    esp_plan_free(plan);
}

/* A prompt that goes in pieces asks its head once. */
static void look_at_phase(const cli_state *cli, const whole_model *model, int index,
                          whole_phase *phase)
{
    const esp_model_call call = whole_call(model, index);
    double runs = call.last_only ? ceil((double)phase->tokens / (double)call.tokens) : 1;
    esp_model_layer layer, next;
    bool more = esp_model_get_layer(model->loaded.model, 0, call, &layer);
    phase->products = (whole_products){.measured = true};
    for (int64_t i = 0; more; i++) {
        more = esp_model_get_layer(model->loaded.model, i + 1, call, &next);
        count_layer(cli, &layer, call.last_only && !more ? 1 : runs, &phase->products);
        layer = next;
    }
}

/* As `run` prints it: on stderr, or into the line of the phase. */
static esp_status explain_phase(cli_state *cli, whole_model *model, int index, esp_error *error)
{
    whole_phase *phase = &model->phases[index];
    const esp_model_call call = whole_call(model, index);
    if (!cli->plan->explain) {
        return ESP_OK;
    }
    if (cli->common.json) {
        record_free(&phase->explained);
        phase->explained = record_list();
        return explain_model_json(cli, model->loaded.model, call, &phase->explained, error);
    }
    progress_end(&cli->progress);
    char name[WHOLE_NAME_MAX];
    name_problem(model, phase, name);
    fprintf(stderr, "\n%s at %lld tokens\n", name, (long long)call.tokens);
    return explain_model(cli, model->loaded.model, call, stderr, error);
}

esp_status whole_look(cli_state *cli, whole_model *model, esp_error *error)
{
    record_free(&model->kernels);
    model->kernels = record_object();
    model->memory = loaded_memory(&model->loaded);
    for (int i = 0; i < model->phase_count; i++) {
        whole_phase *phase = &model->phases[i];
        look_at_phase(cli, model, i, phase);
        record_child(&model->kernels, phase->name,
                     model_kernels_json(model->loaded.model, whole_call(model, i)));
        TRY(explain_phase(cli, model, i, error));
    }
    return ESP_OK;
}

/* ---- rows ---- */

static timing_spread to_dense(const cli_state *cli, const whole_phase *dense,
                              const whole_phase *phase)
{
    return timing_ratio(dense->ms, phase->ms, (int)((const bench_args *)cli->args)->rounds);
}

static double flops_share(const whole_phase *phase)
{
    return whole_share(phase->products.sparse_flops, phase->products.flops);
}

static double bytes_share(const whole_phase *phase)
{
    return whole_share(phase->products.sparse_bytes, phase->products.bytes);
}

static bool is_sparse(const whole_phase *phase)
{
    return flops_share(phase) >= WHOLE_SPARSE_SHARE && bytes_share(phase) >= WHOLE_SPARSE_SHARE;
}

/* bench/models.pl names rows alike. */
static const char *name_row(const whole_model *model, const whole_phase *phase)
{
    if (model->loaded.info.sparse_layers == 0) {
        return "dense";
    }
    if (is_sparse(phase)) {
        return "sparse";
    }
    return flops_share(phase) < 0.5 ? "mostly dense" : "partly sparse";
}

static esp_status print_one(const cli_state *cli, whole_model *model, int phase_index,
                            const whole_phase *dense, esp_error *error)
{
    const bench_args *args = cli->args;
    const esp_model_info *info = &model->loaded.info;
    whole_phase *phase = &model->phases[phase_index];
    int rounds = (int)args->rounds;
    char name[WHOLE_NAME_MAX];
    timing_spread ratio = to_dense(cli, dense, phase);
    double median = timing_spread_of(phase->ms, rounds).median;
    name_problem(model, phase, name);
    cli_record record = record_begin("bench"), rivals = record_object();
    record_text(&record, "kind", "whole");
    record_text(&record, "problem", name);
    record_text(&record, "pattern", model->label);
    record_bool(&record, "random_weights", model->drawn);
    record_real(&record, "median_ms", median);
    record_real(&record, "least_ms", bench_least(phase->ms, rounds));
    record_real(&record, "per_second", 1e3 * phase->work / median);
    record_text(&record, "unit", phase->unit);
    record_real(&rivals, "espalier_dense", timing_spread_of(dense->ms, rounds).median);
    record_child(&record, "rivals", rivals);
    record_real(&record, "ratio_to_dense", ratio.median);
    record_real(&record, "ratio_least", ratio.least);
    record_real(&record, "ratio_most", ratio.most);
    record_real(&record, "sparse_flops_share", flops_share(phase));
    record_real(&record, "sparse_bytes_share", bytes_share(phase));
    record_bool(&record, "is_sparse", is_sparse(phase));
    record_child(&record, "time_share", whole_time_shares(phase, median));
    record_child(&record, "kernel_times", whole_kernel_times(phase));
    if (phase->given_ms > 0) {
        record_real(&record, "median_ms_with_pixels_from_the_host", phase->given_ms);
    }
    record_int(&record, "resident_bytes", (int64_t)info->resident_bytes);
    record_int(&record, "linear_resident_bytes", (int64_t)info->linear_resident_bytes);
    device_bytes_json(model->memory, &record);
    record_int(&record, "parameters", info->parameters);
    record_int(&record, "batch", phase->batch);
    record_int(&record, "tokens", phase->tokens);
    record_int(&record, "rounds", rounds);
    if (phase_index == 0) {
        record_child(&record, "kernels", model->kernels);
        model->kernels = (cli_record){0};
    }
    explain_memory_json(cli, info, &record);
    if (cli->plan->explain) {
        record_child(&record, "explain", phase->explained);
        phase->explained = (cli_record){0};
    }
    record_int(&record, "threads", esp_context_threads(cli->context));
    record_text(&record, "compute", model_compute(info));
    record_text(&record, "device", esp_device_name(cli->device));
    record_text(&record, "commit", cli_commit());
    return record_print(&record, error);
}

esp_status whole_print_json(const cli_state *cli, whole_model *models, int count, esp_error *error)
{
    for (int phase = 0; phase < models[0].phase_count; phase++) {
        for (int i = 0; i < count; i++) {
            if (phase < models[i].phase_count) {
                TRY(print_one(cli, &models[i], phase, &models[0].phases[phase], error));
            }
        }
    }
    return ESP_OK;
}

static void fill_row(const cli_state *cli, cli_table *table, const whole_model *model, int index,
                     const whole_phase *dense)
{
    const whole_phase *phase = &model->phases[index];
    char name[WHOLE_NAME_MAX], text[SIZE_TEXT_MAX];
    double median =
        timing_spread_of(phase->ms, (int)((const bench_args *)cli->args)->rounds).median;
    const whole_products *products = &phase->products;
    name_problem(model, phase, name);
    table_cell(table, "%s", name);
    table_cell(table, "%.3f", median);
    table_cell(table, "%s %s/s", size_number(1e3 * phase->work / median, text), phase->unit);
    table_cell(table, "%.2fx", to_dense(cli, dense, phase).median);
    table_cell(table, "%s", size_bytes((double)model->memory.weights, text));
    table_cell(table, "%s", size_bytes((double)model->memory.activations, text));
    table_cell(table, "%.0f %%", 100 * flops_share(phase));
    table_cell(table, "%.0f %%", 100 * bytes_share(phase));
    table_cell(table, "%.0f %%",
               100 * whole_share(products->sparse_ms + products->dense_ms, median));
    table_cell(table, "%s", name_row(model, phase));
}

esp_status whole_print_table(const cli_state *cli, const whole_model *models, int count,
                             esp_error *error)
{
    static const char *const heads[] = {
        "<problem",     ">median ms",    ">throughput",   ">to dense",       ">resident",
        ">activations", ">sparse FLOPs", ">sparse bytes", ">products' time", "<row"};
    cli_table table;
    table_begin(&table, COUNT(heads), heads);
    for (int phase = 0; phase < models[0].phase_count; phase++) {
        for (int i = 0; i < count; i++) {
            if (phase < models[i].phase_count) {
                fill_row(cli, &table, &models[i], phase, &models[0].phases[phase]);
            }
        }
    }
    esp_status status = table_print(&table, stdout, error);
    table_free(&table);
    if (status == ESP_OK) {
        printf("%s, %d threads, medians of %lld rounds; products' time by %s times of their "
               "kernels; a row is called sparse where sparse kernels run at least %.0f %% of FLOPs "
               "and of bytes\n",
               esp_device_name(cli->device), esp_context_threads(cli->context),
               (long long)((const bench_args *)cli->args)->rounds,
               models[0].phases[0].products.measured ? "measured" : "predicted",
               100 * WHOLE_SPARSE_SHARE);
        whole_print_traces(models, count);
    }
    return status;
}
