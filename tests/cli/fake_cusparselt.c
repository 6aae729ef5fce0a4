/* A library in the place of cuSPARSELt, for tests of who asks it: it accepts everything, its search
 * ends the process as the real one has been seen to do, and its product writes nothing or, with
 * FAKE_CUSPARSELT=dies, ends the process too. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define OPEN __attribute__((visibility("default")))
#define ACCEPTS(name)                                                                              \
    OPEN int name(void);                                                                           \
    int name(void)                                                                                 \
    {                                                                                              \
        return 0;                                                                                  \
    }

ACCEPTS(cusparseLtInit)
ACCEPTS(cusparseLtDenseDescriptorInit)
ACCEPTS(cusparseLtStructuredDescriptorInit)
ACCEPTS(cusparseLtMatDescriptorDestroy)
ACCEPTS(cusparseLtMatmulDescriptorInit)
ACCEPTS(cusparseLtMatmulAlgSelectionInit)
ACCEPTS(cusparseLtMatmulPlanInit)
ACCEPTS(cusparseLtMatmulPlanDestroy)
ACCEPTS(cusparseLtSpMMACompress)

OPEN int cusparseLtGetProperty(int which, int *value);
int cusparseLtGetProperty(int which, int *value)
{
    *value = which == 1 ? 8 : 0; /* 0.8.0 */
    return 0;
}

OPEN int cusparseLtMatmulGetWorkspace(const void *handle, const void *plan, size_t *bytes);
int cusparseLtMatmulGetWorkspace(const void *handle, const void *plan, size_t *bytes)
{
    (void)handle, (void)plan;
    *bytes = 0;
    return 0;
}

OPEN int cusparseLtSpMMACompressedSize(const void *handle, const void *plan, size_t *bytes,
                                       size_t *buffer_bytes);
int cusparseLtSpMMACompressedSize(const void *handle, const void *plan, size_t *bytes,
                                  size_t *buffer_bytes)
{
    (void)handle, (void)plan;
    *bytes = (size_t)1 << 20;
    *buffer_bytes = 16;
    return 0;
}

OPEN int cusparseLtMatmulSearch(void);
int cusparseLtMatmulSearch(void)
{
    abort();
}

OPEN int cusparseLtMatmul(void);
int cusparseLtMatmul(void)
{
    const char *how = getenv("FAKE_CUSPARSELT");
    if (how != NULL && strcmp(how, "dies") == 0) {
        abort();
    }
    return 0;
}
