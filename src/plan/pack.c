/* Weights on a device. Back ends pack one form at a time; here the other forms of a sparse weight
 * are made, ordinary packed weights of pattern dense or 2:4, held by the one that the caller has.
 */
#include "format/format.h"
#include "plan/plan.h"

/* The decoded weight is wrapped, not copied: packing copies it. */
static esp_status pack_dense(esp_device *device, const esp_sparse *sparse, esp_packed **packed,
                             esp_error *error)
{
    esp_tensor dense = {0};
    const int64_t shape[] = {sparse->out_features, sparse->in_features};
    ESP_TRY(esp_tensor_create(device->context, sparse->dtype, 2, shape, &dense, error));
    esp_status status = esp_sparse_decode(sparse, &dense, error);
    if (status == ESP_OK) {
        esp_sparse whole = {.context = device->context,
                            .pattern = {.kind = ESP_PATTERN_DENSE},
                            .dtype = sparse->dtype,
                            .out_features = sparse->out_features,
                            .in_features = sparse->in_features,
                            .part_count = 1,
                            .parts = {{"", dense}}};
        status = device->backend->pack(device, &whole, packed, error);
    }
    esp_tensor_free(device->context, &dense);
    return status;
}

static esp_status pack_spread(esp_device *device, const esp_sparse *sparse, esp_packed **packed,
                              esp_error *error)
{
    esp_sparse *spread = NULL;
    ESP_TRY(esp_sparse_spread(sparse, &spread, error));
    esp_status status = device->backend->pack(device, spread, packed, error);
    esp_sparse_free(spread);
    return status;
}

/* A back end lists its kernels on each of its devices, also those that do not run there. */
static bool reads_spread(const esp_device *device, const esp_sparse *sparse)
{
    const esp_kernel *const *kernels = device->backend->kernels;
    esp_dtype type = sparse->dtype;
    const esp_matmul_problem problem = {.pattern = sparse->pattern,
                                        .weight_type = type,
                                        .act_type = type,
                                        .out_type = type,
                                        .compute = device->backend->auto_compute(device, type),
                                        .out_features = sparse->out_features,
                                        .in_features = sparse->in_features,
                                        .tokens = 1};
    bool found = false;
    for (int i = 0; kernels[i] != NULL && !found; i++) {
        found = kernels[i]->spread && kernels[i]->why_not(kernels[i], device, &problem) == NULL;
    }
    return found;
}

/* A weight that holds nothing but other forms. */
static esp_status make_hollow(esp_device *device, const esp_sparse *sparse, esp_packed **packed,
                              esp_error *error)
{
    esp_packed *made = esp_alloc(device->context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "a packed weight");
    }
    *made = (esp_packed){.device = device,
                         .pattern = sparse->pattern,
                         .dtype = sparse->dtype,
                         .out_features = sparse->out_features,
                         .in_features = sparse->in_features,
                         .hollow = true};
    *packed = made;
    return ESP_OK;
}

esp_status esp_pack_with(esp_device *device, const esp_sparse *sparse,
                         const esp_pack_options *options, esp_packed **packed, esp_error *error)
{
    unsigned forms = options != NULL && options->forms != 0 ? options->forms : ESP_FORM_SPARSE;
    if ((forms & ~PLAN_ALL_FORMS) != 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "pack.bad_forms",
                        "pack: forms %#x have bits other than ESP_FORM_SPARSE, ESP_FORM_DENSE and "
                        "ESP_FORM_SPREAD",
                        forms);
    }
    if (!esp_pattern_spreads(&sparse->pattern) || !reads_spread(device, sparse)) {
        forms &= ~(unsigned)ESP_FORM_SPREAD;
        forms = forms != 0 ? forms : ESP_FORM_SPARSE;
    }
    if (sparse->pattern.kind == ESP_PATTERN_DENSE || forms == ESP_FORM_SPARSE) {
        return device->backend->pack(device, sparse, packed, error);
    }
    esp_packed *made = NULL;
    ESP_TRY((forms & ESP_FORM_SPARSE) != 0 ? device->backend->pack(device, sparse, &made, error)
                                           : make_hollow(device, sparse, &made, error));
    esp_status status = ESP_OK;
    if ((forms & ESP_FORM_DENSE) != 0) {
        status = pack_dense(device, sparse, &made->dense, error);
    }
    if (status == ESP_OK && (forms & ESP_FORM_SPREAD) != 0) {
        status = pack_spread(device, sparse, &made->spread, error);
    }
    if (status != ESP_OK) {
        esp_packed_free(made);
        return status;
    }
    *packed = made;
    return ESP_OK;
}

esp_status esp_pack(esp_device *device, const esp_sparse *sparse, esp_packed **packed,
                    esp_error *error)
{
    return esp_pack_with(device, sparse, NULL, packed, error);
}

void esp_packed_free(esp_packed *packed)
{
    if (packed == NULL) {
        return;
    }
    esp_packed_free(packed->dense);
    esp_packed_free(packed->spread);
    if (packed->hollow) {
        esp_release(packed->device->context, packed);
    } else {
        packed->device->backend->packed_free(packed);
    }
}

size_t esp_packed_bytes(const esp_packed *packed)
{
    return packed->bytes + (packed->dense != NULL ? packed->dense->bytes : 0) +
           (packed->spread != NULL ? packed->spread->bytes : 0);
}

unsigned esp_packed_forms(const esp_packed *packed)
{
    if (packed->pattern.kind == ESP_PATTERN_DENSE) {
        return ESP_FORM_SPARSE | ESP_FORM_DENSE;
    }
    return (packed->hollow ? 0u : (unsigned)ESP_FORM_SPARSE) |
           (packed->dense != NULL ? (unsigned)ESP_FORM_DENSE : 0u) |
           (packed->spread != NULL ? (unsigned)ESP_FORM_SPREAD : 0u);
}
