/* Principal axes by LAPACK. Three diagonals first, panel by panel as dsytrd does it, so that
 * there is something to tell and to stop at; then divide and conquer (dstedc), and back to the
 * matrix's own coordinates (dormtr). All on one core, as sums would else depend on their number:
 * a matrix of 4096 channels and rank 300 took 9 s. dstedc cannot be stopped.
 *
 * LAPACK's matrices lie by columns. A symmetric one is the same; of eigenvectors column i becomes
 * row i here, which is what is wanted. */
#include "tensor/axes_inside.h"

#define PANEL 64   /* columns that are reduced at once */
#define CORNER 128 /* of what is left dsytrd does all */
#define BACK 512   /* axes between two steps on the way back */
#define BLOCK 64   /* reflections at once there, at most, and the triangle that joins them */

typedef struct lapack_room {
    double *beside, *tau; /* [n] */
    double *work;
    int *numbers;
    int work_count, number_count;
} lapack_room;

/* The lower triangle becomes three diagonals and the reflections that lead there. */
static esp_status reduce(const axes_job *job, const lapack_room *room, esp_error *error)
{
    const blas_library *blas = &job->algebra->blas;
    const int n = (int)job->n, panel = PANEL;
    const double minus = -1, one = 1;
    int at = 0, info = 0;
    for (; n - at > CORNER; at += PANEL) {
        double share = (double)(n - at) / n;
        ESP_TRY(axes_step(job, 0.6 * (1 - share * share * share), error));
        int left = n - at, behind = left - PANEL;
        double *corner = job->a + (int64_t)at * n + at;
        blas->dlatrd("L", &left, &panel, corner, &n, room->beside + at, room->tau + at, room->work,
                     &left);
        blas->dsyr2k("L", "N", &behind, &panel, &minus, corner + PANEL, &n, room->work + PANEL,
                     &left, &one, corner + PANEL * ((int64_t)n + 1), &n);
        for (int64_t i = at; i < at + PANEL; i++) {
            job->a[i * n + i + 1] = room->beside[i];
            job->values[i] = job->a[i * n + i];
        }
    }
    int left = n - at;
    blas->dsytrd("L", &left, job->a + (int64_t)at * n + at, &n, job->values + at, room->beside + at,
                 room->tau + at, room->work, &room->work_count, &info);
    return ESP_OK;
}

static esp_status turn_back(const axes_job *job, const lapack_room *room, esp_error *error)
{
    const int n = (int)job->n;
    int info = 0;
    for (int at = 0; at < n; at += BACK) {
        int count = ESP_MIN(BACK, n - at);
        ESP_TRY(axes_step(job, 0.8 + 0.2 * at / n, error));
        job->algebra->blas.dormtr("L", "L", "N", &n, &count, job->a, &n, room->tau,
                                  job->axes + (int64_t)at * n, &n, room->work, &room->work_count,
                                  &info);
    }
    return ESP_OK;
}

static esp_status find(const axes_job *job, const lapack_room *room, esp_error *error)
{
    const int n = (int)job->n;
    int info = 0;
    algebra_keep_to_one_thread(job->algebra);
    ESP_TRY(reduce(job, room, error));
    ESP_TRY(axes_step(job, 0.6, error));
    job->algebra->blas.dstedc("I", &n, job->values, room->beside, job->axes, &n, room->work,
                              &room->work_count, room->numbers, &room->number_count, &info);
    if (info != 0) {
        return axes_not_converged(job, error);
    }
    return turn_back(job, room, error);
}

static bool take_room(const axes_job *job, lapack_room *room)
{
    esp_context *context = job->algebra->context;
    size_t n = (size_t)job->n, conquer = 1 + 4 * n + n * n;
    size_t back = (ESP_MIN(n, BACK) + BLOCK + 1) * BLOCK;
    size_t count = ESP_MAX(ESP_MAX(conquer, back), n * PANEL);
    if (count > INT32_MAX) {
        return false;
    }
    room->work_count = (int)count;
    room->number_count = (int)(3 + 5 * n);
    room->beside = esp_alloc_array(context, 2 * n, sizeof *room->beside);
    room->work = esp_alloc_array(context, count, sizeof *room->work);
    room->numbers = esp_alloc_array(context, 3 + 5 * n, sizeof *room->numbers);
    room->tau = room->beside + n;
    return room->beside != NULL && room->work != NULL && room->numbers != NULL;
}

esp_status axes_by_lapack(const axes_job *job, esp_error *error)
{
    esp_context *context = job->algebra->context;
    lapack_room room = {0};
    esp_status status = take_room(job, &room)
                            ? find(job, &room, error)
                            : esp_fail_memory(error, (size_t)(job->n * job->n) * sizeof *room.work,
                                              "principal axes");
    esp_release(context, room.beside);
    esp_release(context, room.work);
    esp_release(context, room.numbers);
    return status;
}
