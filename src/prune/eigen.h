/* Principal axes of symmetric matrices. */
#ifndef ESP_PRUNE_EIGEN_H
#define ESP_PRUNE_EIGEN_H

#include "base/base.h"

/* a: [n][n] symmetric, used up: its diagonal becomes the eigenvalues, falling. axes: [n][n], row i
 * the unit eigenvector of the i-th, its largest entry positive. room: [3 n]. */
void esp_principal_axes(double *a, int64_t n, double *axes, double *room);

/* Place i of n channels gets the axis of rank rank_of[i]: places that are equal modulo m share a
 * band of ranks, so that a group of m neighbours has one axis of each band, falling. */
void esp_deal_ranks(int64_t n, int64_t m, int64_t *rank_of);

#endif
