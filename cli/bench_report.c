/* Results of measured products: a JSON line each, or a table of all. */
#include <math.h>
#include <string.h>

#include "bench.h"

/* ---- JSON ---- */

static cli_record spread_json(const timing_spread *spread)
{
    cli_record record = record_object();
    record_real(&record, "least", spread->least);
    record_real(&record, "low_quartile", spread->low);
    record_real(&record, "high_quartile", spread->high);
    record_real(&record, "most", spread->most);
    return record;
}

static void add_rivals(cli_record *record, const problem_result *result)
{
    cli_record rivals = record_object(), least = record_object(), ratios = record_object();
    cli_record widened = record_object();
    for (int i = 0; i < result->rival_count; i++) {
        const kernel_times *rival = &result->rivals[i];
        record_real(&rivals, rival->name, rival->median_us);
        record_real(&least, rival->name, rival->least_us);
        record_real(&ratios, rival->name, rival->ratio.median);
    }
    for (int i = 0; i < result->wide_count; i++) {
        record_real(&widened, result->widened[i].name, result->widened[i].median_us);
    }
    record_child(record, "rivals", rivals);
    record_child(record, "rivals_min_us", least);
    record_child(record, "rival_ratios", ratios);
    record_child(record, "f32_weight_libraries", widened);
}

/* Share of what a probe of the memory reached in the same rounds. */
static void add_reading(cli_record *record, const problem_result *result)
{
    bool copied = result->on_gpu;
    record_real(record, copied ? "copy_gb_per_s" : "read_gb_per_s", result->read_gb_per_s);
    record_real(record, copied ? "share_of_copy_bandwidth" : "share_of_read_bandwidth",
                result->read_share.median);
    record_child(record, "share_spread", spread_json(&result->read_share));
}

static void add_gpu(cli_record *record, const problem_result *result)
{
    cli_record missing = record_object();
    if (!result->on_gpu) {
        record_free(&missing);
        return;
    }
    for (int i = 0; i < result->missing_count; i++) {
        record_text(&missing, result->missing[i].name, result->missing[i].reason);
    }
    record_real(record, "tflops", result->tflops);
    record_real(record, "dense_equivalent_tflops", 1e-3 * result->gflops);
    record_real(record, "host_us", result->host_us);
    record_real(record, "sm_clock_mhz", result->clock_mhz);
    record_child(record, "rivals_not_run", missing);
}

esp_status bench_print_json(const cli_state *cli, const problem_result *result, esp_error *error)
{
    cli_record record = record_begin("bench");
    record_text(&record, "kind", "problem");
    record_text(&record, "problem", result->problem);
    record_text(&record, "kernel", result->kernel);
    record_bool(&record, "chosen", result->chosen);
    record_real(&record, "median_us", result->median_us);
    record_real(&record, "min_us", result->least_us);
    add_rivals(&record, result);
    record_text(&record, "fastest_dense",
                result->dense_kernel[0] != '\0' ? result->dense_kernel : NULL);
    record_real(&record, "ratio_to_dense", result->to_dense.median);
    record_child(&record, "ratio_spread", spread_json(&result->to_dense));
    record_real(&record, "gb_per_s", result->gb_per_s);
    record_real(&record, "gflops", result->gflops);
    add_reading(&record, result);
    add_gpu(&record, result);
    record_real(&record, "error_to_ref", result->error);
    record_int(&record, "weight_bytes", (int64_t)result->weight_bytes);
    record_int(&record, "stream_bytes", (int64_t)result->stream_bytes);
    record_int(&record, "dense_weight_bytes", (int64_t)result->dense_bytes);
    record_int(&record, "weight_copies", result->copies);
    record_int(&record, "rounds", result->rounds);
    record_int(&record, "threads", esp_context_threads(cli->context));
    record_bool(&record, "pinned", result->pinned);
    record_real(&record, "load_average", result->load_average);
    record_text(&record, "compute", esp_compute_name(result->compute));
    record_text(&record, "device", esp_device_name(cli->device));
    record_child(&record, "machine", bench_machine_json(cli));
    record_text(&record, "commit", cli_commit());
    TRY(bench_explain_json(cli, result->problem, &record, error));
    return record_print(&record, error);
}

/* ---- the table ---- */

static void ratio_cells(cli_table *table, const timing_spread *ratio, bool known)
{
    table_cell(table, known ? "%.2fx" : "-", ratio->median);
    table_cell(table, known ? "%.2f-%.2f" : "", ratio->least, ratio->most);
}

static void rival_rows(cli_table *table, const char *label, const kernel_times *times, int count)
{
    for (int i = 0; i < count; i++) {
        table_cell(table, "%s", label);
        table_cell(table, "%s", times[i].name);
        table_cell(table, "%.1f", times[i].median_us);
        table_cell(table, "%.1f", times[i].least_us);
        ratio_cells(table, &times[i].ratio, true);
        table_cell(table, "%s", "");
        table_cell(table, "%s", "");
        table_cell(table, "%s", "");
    }
}

static void problem_rows(cli_table *table, const problem_result *result, bool with_rivals)
{
    table_cell(table, "%s", result->problem);
    table_cell(table, "%s%s", result->kernel, result->chosen ? "" : " (not chosen)");
    table_cell(table, "%.1f", result->median_us);
    table_cell(table, "%.1f", result->least_us);
    ratio_cells(table, &result->to_dense, isfinite(result->to_dense.median));
    table_cell(table, "%.2f", result->gb_per_s);
    table_cell(table, isfinite(result->read_share.median) ? "%.0f %%" : "-",
               100 * result->read_share.median);
    table_cell(table, "%.1f", result->gflops);
    if (with_rivals) {
        rival_rows(table, "  rival", result->rivals, result->rival_count);
        rival_rows(table, "  context: f32 weights", result->widened, result->wide_count);
    }
}

/* Rivals that did not run; of several rows that say the same the first. */
static void print_missing(const problem_result *results, int at)
{
    const problem_result *mine = &results[at], *before = at > 0 ? &results[at - 1] : NULL;
    for (int i = 0; i < mine->missing_count; i++) {
        bool said = before != NULL && i < before->missing_count &&
                    strcmp(before->missing[i].name, mine->missing[i].name) == 0 &&
                    strcmp(before->missing[i].reason, mine->missing[i].reason) == 0;
        if (!said) {
            printf("%s: %s\n", mine->missing[i].name, mine->missing[i].reason);
        }
    }
}

static void print_notes(const cli_state *cli, const problem_result *results, int count)
{
    printf(
        "\ndevice %s, %d threads%s, median of %d interleaved rounds. 'to dense': time of the "
        "fastest dense\nkernel over this one's (a rival's: its own time over this one's), median "
        "of the rounds' ratios, and\nthe least and most of them. GFLOP/s count the dense "
        "product; 'of reading': the weight's bytes over\nwhat the memory gave a probe %sin the "
        "same rounds",
        esp_device_name(cli->device), esp_context_threads(cli->context),
        results[0].pinned ? " (each bound to a core)" : "", results[0].rounds,
        results[0].on_gpu ? "that copies (read and written) " : "");
    for (int i = 0; i < count; i++) {
        if (isfinite(results[i].read_gb_per_s)) {
            printf(" (%.1f GB/s)", results[i].read_gb_per_s);
            break;
        }
    }
    printf(".\n");
    bench_machine_print(cli);
    for (int i = 0; i < count; i++) {
        print_missing(results, i);
        if (results[i].chosen && results[i].to_dense.median < 0.995) {
            printf("%s is slower than the fastest dense kernel on this machine: %.2fx\n",
                   results[i].problem, results[i].to_dense.median);
        }
    }
}

esp_status bench_print_table(const cli_state *cli, const problem_result *results, int count,
                             esp_error *error)
{
    static const char *const heads[] = {"<problem", "<kernel",     ">median us",
                                        ">min us",  ">to dense",   ">spread",
                                        ">GB/s",    ">of reading", ">GFLOP/s"};
    cli_table table;
    table_begin(&table, COUNT(heads), heads);
    for (int i = 0; i < count; i++) {
        /* rows of one problem have the same rivals */
        bool first = i == 0 || strcmp(results[i].problem, results[i - 1].problem) != 0;
        problem_rows(&table, &results[i], first);
    }
    esp_status status = table_print(&table, stdout, error);
    table_free(&table);
    print_notes(cli, results, count);
    return status;
}
