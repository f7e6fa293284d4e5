// A driver with one GPU and no more than `doctor` asks of it: versions, attributes, the primary context.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

static char primary;
static void *current;

int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int at) { *device = at; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Simulated GPU", size); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)16384 << 20; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 6 : 0;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &primary; return 0; }
int cuCtxSetCurrent(void *context) { current = context; return 0; }
int cuCtxGetCurrent(void **context) { *context = current; return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) {
    if (!current) return 201;  // CUDA_ERROR_INVALID_CONTEXT
    *free = (size_t)15000 << 20;
    *total = (size_t)16384 << 20;
    return 0;
}
// By this NVIDIA's bindings find all the others.
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *found) {
    *function = dlsym(RTLD_DEFAULT, name);
    if (found) *found = *function ? 0 : 1;
    return *function ? 0 : 500;  // CUDA_ERROR_NOT_FOUND
}
int cuGetProcAddress(const char *name, void **function, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
