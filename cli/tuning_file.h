/* The file that keeps measured times from run to run. */
#ifndef CLI_TUNING_FILE_H
#define CLI_TUNING_FILE_H

#include "cli.h"

#define TUNING_PATH_MAX 4096
/* $ESPALIER_TUNING; empty: none. Else espalier/tuning in the XDG cache folder. False: none. */
bool tuning_path(char path[TUNING_PATH_MAX]);
/* Into the context's table. A file that is absent is no matter; one that cannot be used is ignored
 * with one warning. */
void tuning_load(cli_state *cli);
/* Merges the table with what the file holds by now and replaces it whole. A file that is not a
 * tuning table, or a newer one, is never replaced: ESP_BAD_FILE. */
ESP_MUST_CHECK esp_status tuning_save(cli_state *cli, esp_error *error);

#endif
