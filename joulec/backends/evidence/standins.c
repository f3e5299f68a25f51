/* What a CUDA library must really answer before ONNX Runtime builds a session for its CUDA provider: one device of
   compute capability 8.9 with 16 GiB, memory (which is the host's), streams and events that are never used.
   standins.py adds every other symbol as a function that succeeds and does nothing. No kernel computes anything. */
#include <driver_types.h>
#include <stdlib.h>
#include <string.h>

#define ANSWER(name, ...) int name(__VA_ARGS__)
#define HANDLE(value) ((void *)(size_t)(value))

enum { UNSUPPORTED = 801, NO_SYMBOL = 500, OUT_OF_MEMORY = 2, GIB = 1 << 30 };

static int put(int *place, int value) { *place = value; return 0; }
static int host_memory(void **place, size_t bytes) { return posix_memalign(place, 256, bytes ? bytes : 1) ? OUT_OF_MEMORY : 0; }

ANSWER(cudaGetDeviceCount, int *count) { return put(count, 1); }
ANSWER(cudaGetDevice, int *device) { return put(device, 0); }
ANSWER(cudaRuntimeGetVersion, int *version) { return put(version, CUDA_STANDIN_VERSION); }
ANSWER(cudaDriverGetVersion, int *version) { return put(version, CUDA_STANDIN_VERSION); }
ANSWER(cudaStreamIsCapturing, void *stream, int *capturing) { (void)stream; return put(capturing, 0); }

ANSWER(cudaGetDeviceProperties, struct cudaDeviceProp *p, int device) {
  (void)device;
  memset(p, 0, sizeof *p);
  strcpy(p->name, "stand-in");
  p->major = 8; p->minor = 9; p->warpSize = 32; p->multiProcessorCount = 64;
  p->totalGlobalMem = 16ull * GIB; p->l2CacheSize = 4 << 20;
  p->maxThreadsPerBlock = 1024; p->maxThreadsPerMultiProcessor = 2048;
  p->sharedMemPerBlock = 48 << 10; p->sharedMemPerBlockOptin = 99 << 10; p->sharedMemPerMultiprocessor = 100 << 10;
  p->regsPerBlock = p->regsPerMultiprocessor = 1 << 16;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024; p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 0x7fffffff; p->maxGridSize[1] = p->maxGridSize[2] = 0xffff;
  return 0;
}

ANSWER(cudaDeviceGetAttribute, int *value, int attribute, int device) {
  (void)device;
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: return put(value, 8);
    case cudaDevAttrComputeCapabilityMinor: return put(value, 9);
    case cudaDevAttrMultiProcessorCount: return put(value, 64);
    case cudaDevAttrWarpSize: return put(value, 32);
    case cudaDevAttrMaxThreadsPerBlock: return put(value, 1024);
    case cudaDevAttrMaxSharedMemoryPerBlock: return put(value, 48 << 10);
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return put(value, 99 << 10);
    default: return put(value, 0);
  }
}

ANSWER(cudaMemGetInfo, size_t *left, size_t *total) { *left = 15ull * GIB; *total = 16ull * GIB; return 0; }
ANSWER(cudaMalloc, void **place, size_t bytes) { return host_memory(place, bytes); }
ANSWER(cudaMallocHost, void **place, size_t bytes) { return host_memory(place, bytes); }
ANSWER(cudaHostAlloc, void **place, size_t bytes, unsigned flags) { (void)flags; return host_memory(place, bytes); }
ANSWER(cudaFree, void *place) { free(place); return 0; }
ANSWER(cudaFreeHost, void *place) { free(place); return 0; }
ANSWER(cudaFreeAsync, void *place, void *stream) { (void)stream; free(place); return 0; }
ANSWER(cudaMemcpy, void *to, const void *from, size_t bytes, int kind) { (void)kind; memcpy(to, from, bytes); return 0; }
ANSWER(cudaMemcpyAsync, void *to, const void *from, size_t bytes, int kind, void *stream) {
  (void)kind; (void)stream; memcpy(to, from, bytes); return 0;
}
ANSWER(cudaMemset, void *place, int value, size_t bytes) { memset(place, value, bytes); return 0; }
ANSWER(cudaMemsetAsync, void *place, int value, size_t bytes, void *stream) {
  (void)stream; memset(place, value, bytes); return 0;
}

ANSWER(cudaStreamCreateWithFlags, void **stream, unsigned flags) { (void)flags; *stream = HANDLE(0x2000); return 0; }
ANSWER(cudaEventCreateWithFlags, void **event, unsigned flags) { (void)flags; *event = HANDLE(0x3000); return 0; }
ANSWER(cudaEventElapsedTime, float *ms, void *from, void *to) { (void)from; (void)to; *ms = 0; return 0; }
ANSWER(cudaMemPoolCreate, void **pool, void *props) { (void)props; *pool = 0; return UNSUPPORTED; }
ANSWER(cudaPointerGetAttributes, struct cudaPointerAttributes *found, const void *place) {
  (void)place; memset(found, 0, sizeof *found); return 0;
}
ANSWER(cudaFuncGetAttributes, struct cudaFuncAttributes *found, const void *function) {
  (void)function; memset(found, 0, sizeof *found); return 0;
}
ANSWER(cudaGetDriverEntryPointByVersion, const char *name, void **place, unsigned v, unsigned long long f, int *status) {
  (void)name; (void)v; (void)f; (void)status; *place = 0; return NO_SYMBOL;
}
ANSWER(cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags, int *blocks, const void *f, int n, size_t m, unsigned g) {
  (void)f; (void)n; (void)m; (void)g; return put(blocks, 1);
}
ANSWER(cudaLibraryLoadData, void **library) { *library = HANDLE(0x4000); return 0; }
ANSWER(cudaLibraryGetKernel, void **kernel) { *kernel = HANDLE(0x5000); return 0; }
ANSWER(__cudaGetKernel, void **kernel) { *kernel = HANDLE(0x5000); return 0; }

static void *fat_binary;
void **__cudaRegisterFatBinary(void *image) { (void)image; return &fat_binary; }
