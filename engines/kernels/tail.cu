// Soft-argmax and scores in one pass over the logits, in FP32: what `convnextpose.network` computes as `soft_argmax` and
// `joint_scores`, in px and mm.
//
// FP16 logits [N, J * D, H, W] are read once, eight at a time. Each thread keeps the largest logit that it has met and sums
// relative to it (online softmax: Milakov and Gimelshein, 2018); sums of two threads, and of the blocks that share a joint's
// volume, are merged in the same way. The last block of a volume to end writes the joint: no second kernel.

#define THREADS 256
#define WARP 32
#define LOG2_E 1.4426950408889634f

#ifdef __CUDACC_RTC__  // NVRTC comes without cuda_fp16.h and math.h
#define INFINITY __int_as_float(0x7f800000)
static __device__ float from_half(unsigned short bits)
{
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
#endif

// Sums under exp2(logit - most): of the mass, and of the mass times the place on each axis and its square on x and y. Places are
// taken from the middle of x and y, so that the variance is no difference of large numbers.
struct Sums {
    float most, mass, x, y, z, xx, yy, unused;
};

struct Volume {
    int depth, height, width;  // bins; the width is a multiple of 8
    int splits;                // blocks for each joint
    float px_x, px_y;          // px of the crop for a bin
    float mm, mm_offset;       // depth in mm is z * mm + mm_offset
    float score_factor;        // a score is exp(variance in px squared * this)
};

static __device__ Sums empty()
{
    Sums none;
    none.most = -INFINITY;
    none.mass = none.x = none.y = none.z = none.xx = none.yy = none.unused = 0.0f;
    return none;
}

// The factor that makes sums relative to `most` relative to `top`, the larger one. The comparison serves sums of nothing.
static __device__ float factor(float most, float top)
{
    return most == top ? 1.0f : exp2f(most - top);
}

static __device__ Sums merge(Sums a, Sums b)
{
    Sums both;
    both.most = fmaxf(a.most, b.most);
    const float f = factor(a.most, both.most), g = factor(b.most, both.most);
    both.mass = a.mass * f + b.mass * g;
    both.x = a.x * f + b.x * g;
    both.y = a.y * f + b.y * g;
    both.z = a.z * f + b.z * g;
    both.xx = a.xx * f + b.xx * g;
    both.yy = a.yy * f + b.yy * g;
    both.unused = 0.0f;
    return both;
}

static __device__ Sums of_lane(Sums mine, int distance)
{
    Sums other;
    other.most = __shfl_xor_sync(0xffffffffu, mine.most, distance);
    other.mass = __shfl_xor_sync(0xffffffffu, mine.mass, distance);
    other.x = __shfl_xor_sync(0xffffffffu, mine.x, distance);
    other.y = __shfl_xor_sync(0xffffffffu, mine.y, distance);
    other.z = __shfl_xor_sync(0xffffffffu, mine.z, distance);
    other.xx = __shfl_xor_sync(0xffffffffu, mine.xx, distance);
    other.yy = __shfl_xor_sync(0xffffffffu, mine.yy, distance);
    other.unused = 0.0f;
    return other;
}

// The sums of all threads of the block, for each of them.
static __device__ Sums of_block(Sums mine, Sums* shared)
{
    for (int distance = WARP / 2; distance > 0; distance /= 2) mine = merge(mine, of_lane(mine, distance));
    __syncthreads();
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = mine;
    __syncthreads();
    mine = shared[threadIdx.x % (THREADS / WARP)];
    for (int distance = THREADS / WARP / 2; distance > 0; distance /= 2) mine = merge(mine, of_lane(mine, distance));
    return mine;
}

// Threads THREADS, grid (splits, N * J). `partials` has a Sums for each block, `arrived` a zero for each volume, which is zero
// again at the end.
extern "C" __global__ void tail(
    const uint4* logits, float* joints, float* scores, Sums* partials, unsigned int* arrived, Volume volume)
{
    __shared__ Sums shared[THREADS / WARP];
    __shared__ unsigned int before;
    const int row = volume.width / 8, vectors = volume.depth * volume.height * row;
    const int index = blockIdx.y, split = blockIdx.x;
    const int each = (vectors + volume.splits - 1) / volume.splits;
    const int begin = split * each, end = begin + each < vectors ? begin + each : vectors;
    const float middle_x = 0.5f * (float)(volume.width - 1), middle_y = 0.5f * (float)(volume.height - 1);
    const uint4* mine = logits + (long long)index * vectors;

    Sums sums = empty();
#pragma unroll 4
    for (int vector = begin + (int)threadIdx.x; vector < end; vector += THREADS) {
        const uint4 packed = mine[vector];
        const unsigned int words[4] = {packed.x, packed.y, packed.z, packed.w};
        float logit[8];
        for (int i = 0; i < 8; i++) logit[i] = LOG2_E * from_half((unsigned short)(words[i / 2] >> 16 * (i % 2)));
        float top = logit[0];
        for (int i = 1; i < 8; i++) top = fmaxf(top, logit[i]);
        if (top > sums.most) {
            Sums higher = empty();
            higher.most = top;
            sums = merge(sums, higher);
        }
        // Logits of minus infinity have no mass, also where a thread has met no others.
        const float base = sums.most == -INFINITY ? 0.0f : sums.most;
        float mass = 0.0f, first = 0.0f, square = 0.0f;
        for (int i = 0; i < 8; i++) {
            const float part = exp2f(logit[i] - base);
            mass += part;
            first += part * (float)i;
            square += part * (float)(i * i);
        }
        const float x = (float)(vector % row * 8) - middle_x;
        const float y = (float)(vector / row % volume.height) - middle_y;
        const float z = (float)(vector / row / volume.height);
        sums.mass += mass;
        sums.x += x * mass + first;
        sums.y += y * mass;
        sums.z += z * mass;
        sums.xx += x * x * mass + 2.0f * x * first + square;
        sums.yy += y * y * mass;
    }
    sums = of_block(sums, shared);

    if (threadIdx.x == 0) {
        partials[index * volume.splits + split] = sums;
        __threadfence();
        before = atomicInc(arrived + index, volume.splits - 1);  // back to zero with the last one
    }
    __syncthreads();
    if ((int)before != volume.splits - 1) return;

    __threadfence();
    sums = empty();
    if ((int)threadIdx.x < volume.splits) {
        const volatile Sums* there = partials + index * volume.splits + threadIdx.x;  // of other multiprocessors: past the cache
        sums.most = there->most;
        sums.mass = there->mass;
        sums.x = there->x;
        sums.y = there->y;
        sums.z = there->z;
        sums.xx = there->xx;
        sums.yy = there->yy;
    }
    sums = of_block(sums, shared);
    if (threadIdx.x == 0) {
        const float x = sums.x / sums.mass, y = sums.y / sums.mass, z = sums.z / sums.mass;
        const float across = (sums.xx / sums.mass - x * x) * volume.px_x * volume.px_x;
        const float down = (sums.yy / sums.mass - y * y) * volume.px_y * volume.px_y;
        joints[3 * index] = (x + middle_x) * volume.px_x;
        joints[3 * index + 1] = (y + middle_y) * volume.px_y;
        joints[3 * index + 2] = z * volume.mm + volume.mm_offset;
        const float variance = across + down;
        scores[index] = expf((variance < 0.0f ? 0.0f : variance) * volume.score_factor);  // keeps NaN
    }
}
