/* Streams, copies and graphs of a device whose memory is not the host's; on other devices all of
 * this is nothing: work is done when its call returns, and mail is one memory. */
#include "nn/nn.h"

bool esp_device_is_far(const esp_device *device)
{
    return device->backend->upload != NULL;
}

esp_status esp_lane_open(esp_device *device, esp_lane *lane, esp_error *error)
{
    *lane = (esp_lane){.device = device};
    return device->backend->stream_open != NULL
               ? device->backend->stream_open(device, &lane->stream, error)
               : ESP_OK;
}

static void drop_graph(esp_lane *lane, esp_lane_graph *slot)
{
    if (slot->graph != NULL) {
        lane->device->backend->keep_free(lane->device, slot->graph);
    }
    *slot = (esp_lane_graph){.seen = 0};
}

void esp_lane_close(esp_lane *lane)
{
    if (lane->device == NULL) {
        return;
    }
    for (int i = 0; i < lane->kept; i++) {
        drop_graph(lane, &lane->graphs[i]);
    }
    if (lane->device->backend->stream_close != NULL) {
        lane->device->backend->stream_close(lane->device, lane->stream);
    }
    *lane = (esp_lane){.device = NULL};
}

esp_status esp_lane_ready(esp_lane *lane, esp_error *error)
{
    if (!lane->sent) {
        return ESP_OK;
    }
    ESP_TRY(lane->device->backend->settle(lane->device, lane->stream, error));
    lane->sent = false;
    return ESP_OK;
}

esp_status esp_lane_receive(esp_lane *lane, void *to, const void *from, size_t bytes,
                            esp_error *error)
{
    const esp_backend *backend = lane->device->backend;
    if (backend->receive == NULL) {
        return esp_device_download(lane->device, to, from, bytes, error);
    }
    ESP_TRY(backend->receive(lane->device, lane->stream, to, from, bytes, error));
    lane->sent = false;
    return ESP_OK;
}

/* ---- mail ---- */

esp_status esp_mail_take(esp_device *device, size_t bytes, const char *what, esp_mail *mail,
                         esp_error *error)
{
    const esp_backend *backend = device->backend;
    bytes = ESP_MAX(bytes, 64);
    mail->device = backend->alloc(device, bytes);
    mail->bytes = bytes;
    mail->host = mail->device;
    if (mail->device != NULL && esp_device_is_far(device)) {
        mail->host = backend->staging_alloc(device, bytes);
    }
    return mail->host != NULL ? ESP_OK : esp_device_fail_memory(device, bytes, what, error);
}

void esp_mail_free(esp_device *device, esp_mail *mail)
{
    if (mail->host != NULL && mail->host != mail->device) {
        device->backend->staging_release(device, mail->host);
    }
    if (mail->device != NULL) {
        device->backend->release(device, mail->device);
    }
    *mail = (esp_mail){NULL, NULL, 0};
}

esp_status esp_mail_send(esp_lane *lane, const esp_mail *mail, size_t bytes, esp_error *error)
{
    if (mail->host == mail->device) {
        return ESP_OK;
    }
    lane->sent = true;
    return lane->device->backend->send(lane->device, lane->stream, mail->device, mail->host, bytes,
                                       error);
}

/* ---- graphs ---- */

/* The slot of a key; the one that was made first gives way to a new key. */
static esp_lane_graph *find_slot(esp_lane *lane, const int64_t key[4])
{
    for (int i = 0; i < lane->kept; i++) {
        if (memcmp(lane->graphs[i].key, key, sizeof lane->graphs[i].key) == 0) {
            return &lane->graphs[i];
        }
    }
    if (lane->kept == ESP_LANE_GRAPHS) {
        drop_graph(lane, &lane->graphs[0]);
        memmove(&lane->graphs[0], &lane->graphs[1], (ESP_LANE_GRAPHS - 1) * sizeof lane->graphs[0]);
        lane->kept--;
    }
    esp_lane_graph *made = &lane->graphs[lane->kept++];
    *made = (esp_lane_graph){.seen = 0};
    memcpy(made->key, key, sizeof made->key);
    return made;
}

static esp_status keep(esp_lane *lane, esp_lane_graph *slot, esp_lane_fn work, void *user,
                       esp_error *error)
{
    const esp_backend *backend = lane->device->backend;
    ESP_TRY(backend->keep_begin(lane->device, lane->stream, error));
    esp_status status = work(user, error);
    if (status == ESP_OK) {
        return backend->keep_end(lane->device, lane->stream, &slot->graph, error);
    }
    esp_status dropped = backend->keep_end(lane->device, lane->stream, NULL, NULL);
    return status != ESP_OK ? status : dropped;
}

/* What is set up at a first call (libraries, code that is loaded when it first runs) cannot be
 * captured, and work that comes once is not worth it. */
esp_status esp_lane_run(esp_lane *lane, const int64_t key[4], esp_lane_fn work, void *user,
                        esp_error *error)
{
    const esp_backend *backend = lane->device->backend;
    if (backend->keep_begin == NULL) {
        return work(user, error);
    }
    esp_lane_graph *slot = find_slot(lane, key);
    if (slot->seen++ == 0) {
        return work(user, error);
    }
    if (slot->graph == NULL) {
        ESP_TRY(keep(lane, slot, work, user, error));
    }
    return backend->keep_replay(lane->device, lane->stream, slot->graph, error);
}
