#include "problem_list.h"

#include <stdlib.h>
#include <string.h>

#include "token_counts.h"

static bool same(const esp_matmul_problem *a, const esp_matmul_problem *b)
{
    char first[ESP_PROBLEM_TEXT_MAX], second[ESP_PROBLEM_TEXT_MAX];
    esp_matmul_problem_print(a, first);
    esp_matmul_problem_print(b, second);
    return strcmp(first, second) == 0;
}

static bool same_but_tokens(const esp_matmul_problem *a, const esp_matmul_problem *b)
{
    esp_matmul_problem other = *b;
    other.tokens = a->tokens;
    return same(a, &other);
}

esp_status problem_list_add(problem_list *list, const esp_matmul_problem *problem, esp_error *error)
{
    for (int i = 0; i < list->count; i++) {
        if (same(&list->problems[i], problem)) {
            return ESP_OK;
        }
    }
    if (list->count == list->capacity) {
        int capacity = 2 * list->capacity + 16;
        void *grown = realloc(list->problems, (size_t)capacity * sizeof *list->problems);
        if (grown == NULL) {
            return cli_fail_memory(error, "problems");
        }
        list->problems = grown;
        list->capacity = capacity;
    }
    list->problems[list->count++] = *problem;
    return ESP_OK;
}

int problem_list_gather(problem_list *list, int first, int64_t *tokens)
{
    esp_matmul_problem *problems = list->problems + first;
    int together = 1;
    for (int i = 1; i < list->count - first && together < MAX_TOKEN_COUNTS; i++) {
        if (same_but_tokens(&problems[0], &problems[i])) {
            esp_matmul_problem found = problems[i];
            memmove(&problems[together + 1], &problems[together],
                    (size_t)(i - together) * sizeof *problems);
            problems[together++] = found;
        }
    }
    for (int i = 0; i < together; i++) {
        tokens[i] = problems[i].tokens;
    }
    return together;
}

void problem_list_free(problem_list *list)
{
    free(list->problems);
    *list = (problem_list){NULL, 0, 0};
}
