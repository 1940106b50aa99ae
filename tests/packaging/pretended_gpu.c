/* A GPU that computes nothing: what ONNX Runtime asks of CUDA's runtime and pynvml of the driver's library,
   as far as it has to be answered. Memory of the device is memory of the process. Recordings, replays, copies
   and page-locked memory are written to the file PRETENDED_GPU_LOG, a line each, where that is set. */

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long long u64;

static const u64 MEMORY = 1ull << 37;

static int allocate(void **pointer, size_t size) {
  *pointer = aligned_alloc(256, (size + 511) / 256 * 256);
  return 0;
}
static int handle(void **made) { return allocate(made, 1); }

#ifdef RUNTIME

static void said(const char *line) {
  const char *path = getenv("PRETENDED_GPU_LOG");
  int file = path ? open(path, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;
  if (file < 0) return;
  write(file, line, strlen(line));
  close(file);
}

int cudaGraphLaunch(void *graph, void *stream) { return said("replay\n"), 0; }
int cudaMalloc(void **pointer, size_t size) { return allocate(pointer, size); }
int cudaMallocHost(void **pointer, size_t size) { return said("pinned\n"), allocate(pointer, size); }
int cudaHostAlloc(void **pointer, size_t size, unsigned flags) { return cudaMallocHost(pointer, size); }
int cudaMallocFromPoolAsync(void **pointer, size_t size, void *pool, void *stream) {
  return allocate(pointer, size);
}
int cudaFree(void *pointer) { return free(pointer), 0; }
int cudaFreeHost(void *pointer) { return free(pointer), 0; }
int cudaFreeAsync(void *pointer, void *stream) { return free(pointer), 0; }
int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
  said("copy and wait\n");
  return memcpy(to, from, size), 0;
}
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
  said("copy\n");
  return memcpy(to, from, size), 0;
}
int cudaStreamSynchronize(void *stream) { return said("wait\n"), 0; }
int cudaMemset(void *to, int value, size_t size) { return memset(to, value, size), 0; }
int cudaMemsetAsync(void *to, int value, size_t size, void *stream) { return memset(to, value, size), 0; }
int cudaMemGetInfo(size_t *free_bytes, size_t *total) { return *free_bytes = *total = MEMORY, 0; }
int cudaGetDevice(int *device) { return *device = 0; }
int cudaGetDeviceCount(int *count) { return *count = 1, 0; }
int cudaDriverGetVersion(int *version) { return *version = 13000, 0; }
int cudaRuntimeGetVersion(int *version) { return *version = 13000, 0; }
int cudaStreamCreate(void **stream) { return handle(stream); }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return handle(stream); }
int cudaEventCreate(void **event) { return handle(event); }
int cudaEventCreateWithFlags(void **event, unsigned flags) { return handle(event); }
int cudaStreamEndCapture(void *stream, void **graph) { return said("record\n"), handle(graph); }
int cudaGraphInstantiate(void **made, void *graph, u64 flags) { return handle(made); }
const char *cudaGetErrorName(int error) { return "pretended"; }
const char *cudaGetErrorString(int error) { return "pretended"; }

/* 75 and 76 are the compute capability; the rest are sizes. */
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  return *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1024, 0;
}

/* Places as in cudaDeviceProp of CUDA 13. */
int cudaGetDeviceProperties(char *found, int device) {
  memset(found, 0, 640);
  strcpy(found, "pretended");
  *(u64 *)(found + 288) = MEMORY;
  *(u64 *)(found + 296) = 48 << 10; /* shared memory of a block */
  *(int *)(found + 308) = 32;       /* threads of a warp */
  *(int *)(found + 320) = 1024;     /* threads of a block */
  *(int *)(found + 360) = 9;        /* compute capability */
  return 0;
}

#else

typedef struct { u64 total, free, used; } Memory;

int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { return strcpy(text, "580.0"), 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { return *version = 13000, 0; }
int nvmlSystemGetCudaDriverVersion(int *version) { return *version = 13000, 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { return *count = 1, 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { return handle(device); }
int nvmlDeviceGetName(void *device, char *text, unsigned size) { return strcpy(text, "pretended"), 0; }
int nvmlDeviceGetUUID(void *device, char *text, unsigned size) { return strcpy(text, "GPU-0"), 0; }
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
  return *major = 9, *minor = 0;
}
int nvmlDeviceGetMemoryInfo(void *device, Memory *found) {
  return *found = (Memory){MEMORY, MEMORY, 0}, 0;
}
int nvmlDeviceGetMaxClockInfo(void *device, int clock, unsigned *mega_hertz) { return *mega_hertz = 3201, 0; }
int nvmlDeviceGetMemoryBusWidth(void *device, unsigned *bits) { return *bits = 6144, 0; }

#endif
