/* Problems of products, each once. */
#ifndef CLI_PROBLEM_LIST_H
#define CLI_PROBLEM_LIST_H

#include "cli.h"

typedef struct problem_list {
    esp_matmul_problem *problems;
    int count, capacity;
} problem_list;

ESP_MUST_CHECK esp_status problem_list_add(problem_list *list, const esp_matmul_problem *problem,
                                           esp_error *error);
/* Of the problems from `first` on, moves what differs from it in token count only behind it;
 * returns how many (at most MAX_TOKEN_COUNTS), with their counts in `tokens`. */
int problem_list_gather(problem_list *list, int first, int64_t *tokens);
void problem_list_free(problem_list *list);

#endif
