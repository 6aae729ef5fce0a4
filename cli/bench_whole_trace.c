/* Where the time of a whole model goes: kernel by kernel on a GPU, by one run that is traced; and
 * by the times of its plans where there is no trace. */
#include <stdlib.h>
#include <string.h>

#include "bench_whole.h"

#ifndef ESP_HAVE_CUPTI
const char *trace_kind_name(trace_kind kind)
{
    (void)kind;
    return "";
}

bool gpu_trace_begin(char *why, size_t capacity)
{
    snprintf(why, capacity, "this build was made without CUPTI's headers");
    return false;
}

void gpu_trace_end(gpu_trace *trace)
{
    *trace = (gpu_trace){.count = 0};
}
#endif

static esp_status trace_run(whole_model *model, int phase, gpu_trace *trace, char *why,
                            size_t capacity, esp_error *error)
{
    TRY(whole_prepare(model, phase, error));
    if (!gpu_trace_begin(why, capacity)) {
        return ESP_OK;
    }
    esp_status status = whole_run(model, phase, error);
    gpu_trace_end(trace);
    return status;
}

/* A new runner gives the GPU its first run kernel by kernel and makes a graph of the second, as it
 * is being traced: that one counts, unless the driver tells nothing of what is in graphs. */
static esp_status trace_phase(whole_model *model, int index, esp_error *error)
{
    whole_phase *phase = &model->phases[index];
    gpu_trace *runs = calloc(2, sizeof *runs);
    if (runs == NULL) {
        return cli_fail_memory(error, "a trace");
    }
    esp_status status = ESP_OK;
    for (int i = 0; i < 2 && status == ESP_OK; i++) {
        status = trace_run(model, index, &runs[i], phase->no_trace, sizeof phase->no_trace, error);
    }
    if (runs[1].busy_us > runs[0].busy_us / 2) {
        runs[0] = runs[1];
    }
    free(phase->trace);
    phase->trace = runs;
    if (runs->busy_us == 0 || status != ESP_OK) {
        free(runs);
        phase->trace = NULL;
    }
    return status;
}

esp_status whole_trace(const cli_state *cli, whole_model *model, esp_error *error)
{
    if (!bench_on_gpu(cli)) {
        return ESP_OK;
    }
    TRY(whole_renew(cli->args, model, error));
    for (int phase = 0; phase < model->phase_count; phase++) {
        TRY(trace_phase(model, phase, error));
    }
    return ESP_OK;
}

/* ---- what is told ---- */

static void record_traced(const gpu_trace *trace, double median_us, cli_record *shares)
{
    for (int kind = 0; kind < TRACE_KINDS; kind++) {
        record_real(shares, trace_kind_name((trace_kind)kind),
                    whole_share(trace->us[kind], median_us));
    }
    record_real(shares, "idle", whole_share(median_us - trace->busy_us, median_us));
    record_text(shares, "by", "traced kernels");
}

cli_record whole_time_shares(const whole_phase *phase, double median_ms)
{
    const whole_products *products = &phase->products;
    cli_record shares = record_object();
    if (phase->trace != NULL) {
        record_traced(phase->trace, 1e3 * median_ms, &shares);
        return shares;
    }
    record_real(&shares, "sparse_products", whole_share(products->sparse_ms, median_ms));
    record_real(&shares, "dense_products", whole_share(products->dense_ms, median_ms));
    record_real(&shares, "others",
                whole_share(median_ms - products->sparse_ms - products->dense_ms, median_ms));
    record_text(&shares, "by", products->measured ? "measured plans" : "predicted plans");
    if (phase->no_trace[0] != '\0') {
        record_text(&shares, "no_trace", phase->no_trace);
    }
    return shares;
}

cli_record whole_kernel_times(const whole_phase *phase)
{
    cli_record list = record_list();
    for (int i = 0; phase->trace != NULL && i < phase->trace->count; i++) {
        const trace_row *row = &phase->trace->rows[i];
        cli_record one = record_object();
        record_text(&one, "kernel", row->name);
        record_text(&one, "kind", trace_kind_name(row->kind));
        record_int(&one, "runs", row->runs);
        record_real(&one, "us", row->us);
        record_add(&list, one);
    }
    return list;
}

/* The kinds of each row of the table, in percent of the row's time on the GPU. */
void whole_print_traces(const whole_model *models, int count)
{
    for (int phase = 0; phase < models[0].phase_count; phase++) {
        for (int i = 0; i < count; i++) {
            const gpu_trace *trace = models[i].phases[phase].trace;
            if (trace == NULL) {
                continue;
            }
            printf("%s %s, %.3f ms of kernels:", models[i].phases[phase].name, models[i].label,
                   1e-3 * trace->busy_us);
            for (int kind = 0; kind < TRACE_KINDS; kind++) {
                printf("%s %s %.0f %%", kind == 0 ? "" : ",", trace_kind_name((trace_kind)kind),
                       100 * whole_share(trace->us[kind], trace->busy_us));
            }
            printf("\n");
        }
    }
}
