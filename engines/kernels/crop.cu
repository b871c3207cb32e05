// Frames and an affine matrix for each crop to N crops of 256 x 256 px: uint8 BGR, bilinear, black outside the frame.
//
// Pixel centres lie at whole numbers, as for OpenCV's warpAffine. A crop's pixel (x, y) is read at source_from_crop * (x, y, 1).
// Where each crop comes from stands in memory, not in the arguments: so a CUDA graph that holds this kernel can be replayed for
// other frames after that was written anew. Each crop names its own frame, so that one launch serves several cameras.

#define SIDE 256

enum Format { BGR = 0, NV12 = 1, YUV420 = 2 };

// Mirrored by engines/kernels/blocks.py, ORIGIN.
struct Origin {
    unsigned long long planes[3];  // addresses: BGR; or Y and UV; or Y, U and V
    int pitches[3];                // bytes from one row to the next
    int width, height;             // px; without a width the crop is left as it is
    int format;
    float luma_offset, luma_gain;  // luma in 0..255 is (Y - offset) * gain
    float red_v, green_u, green_v, blue_u;
    float matrix[6];               // source_from_crop, row by row
};

struct Tap {
    int first, second;  // the two pixels, both inside the picture
    float share;        // of the second
};

static __device__ Tap tap(float at, int size)
{
    const float inside = fminf(fmaxf(at, 0.0f), (float)(size - 1));  // NaN becomes 0
    Tap result;
    result.first = (int)inside;
    result.second = result.first + 1 < size ? result.first + 1 : result.first;
    result.share = inside - (float)result.first;
    return result;
}

// How much of a bilinear sample is inside: one minus the weight of the pixels outside, along one axis. As both axes are apart,
// clamping the coordinates and multiplying by this is the same as reading black pixels outside.
static __device__ float covered(float at, int size)
{
    return fminf(fmaxf(fminf(1.0f + at, (float)size - at), 0.0f), 1.0f);
}

static __device__ float bilinear(const unsigned char* plane, long long pitch, int step, Tap x, Tap y)
{
    const unsigned char* above = plane + y.first * pitch;
    const unsigned char* below = plane + y.second * pitch;
    const float top = (float)above[x.first * step] * (1.0f - x.share) + (float)above[x.second * step] * x.share;
    const float bottom = (float)below[x.first * step] * (1.0f - x.share) + (float)below[x.second * step] * x.share;
    return top * (1.0f - y.share) + bottom * y.share;
}

static __device__ unsigned int level(float value)
{
    return (unsigned int)rintf(fminf(fmaxf(value, 0.0f), 255.0f));
}

static __device__ float clipped(float value)
{
    return fminf(fmaxf(value, 0.0f), 255.0f);
}

// Threads (64, R): each makes four pixels of a row, which are three whole words of the result. Grid (1, 256 / R, N).
extern "C" __global__ void crop(const Origin* origins, unsigned char* crops)
{
    const int n = blockIdx.z;
    const Origin* frame = origins + n;
    if (frame->width <= 0) return;
    const float* matrix = frame->matrix;
    const int y = blockIdx.y * blockDim.y + threadIdx.y;
    const int width = frame->width, height = frame->height, format = frame->format;
    const unsigned char* first = (const unsigned char*)frame->planes[0];
    const unsigned char* second = (const unsigned char*)frame->planes[1];
    const unsigned char* third = (const unsigned char*)frame->planes[2];
    unsigned int bytes[12];
    for (int i = 0; i < 4; i++) {
        const float x = (float)(4 * threadIdx.x + i);
        const float from_x = matrix[0] * x + (matrix[1] * (float)y + matrix[2]);
        const float from_y = matrix[3] * x + (matrix[4] * (float)y + matrix[5]);
        const float cover = covered(from_x, width) * covered(from_y, height);
        float blue = 0.0f, green = 0.0f, red = 0.0f;
        if (cover > 0.0f) {
            const Tap across = tap(from_x, width), down = tap(from_y, height);
            if (format == BGR) {
                blue = bilinear(first, frame->pitches[0], 3, across, down);
                green = bilinear(first + 1, frame->pitches[0], 3, across, down);
                red = bilinear(first + 2, frame->pitches[0], 3, across, down);
            } else {
                // Chroma is sited as H.264 and HEVC have it by default: on every second column, between every two rows.
                const Tap half_across = tap(0.5f * from_x, (width + 1) / 2);
                const Tap half_down = tap(0.5f * from_y - 0.25f, (height + 1) / 2);
                const int step = format == NV12 ? 2 : 1;
                const unsigned char* v_plane = format == NV12 ? second + 1 : third;
                const int v_pitch = format == NV12 ? frame->pitches[1] : frame->pitches[2];
                const float u = bilinear(second, frame->pitches[1], step, half_across, half_down) - 128.0f;
                const float v = bilinear(v_plane, v_pitch, step, half_across, half_down) - 128.0f;
                const float luma = (bilinear(first, frame->pitches[0], 1, across, down) - frame->luma_offset) * frame->luma_gain;
                blue = clipped(luma + frame->blue_u * u);
                green = clipped(luma + frame->green_u * u + frame->green_v * v);
                red = clipped(luma + frame->red_v * v);
            }
        }
        bytes[3 * i] = level(blue * cover);
        bytes[3 * i + 1] = level(green * cover);
        bytes[3 * i + 2] = level(red * cover);
    }
    unsigned int* words = (unsigned int*)(crops + (((long long)n * SIDE + y) * SIDE + 4 * threadIdx.x) * 3);
    for (int word = 0; word < 3; word++) {
        const unsigned int* four = bytes + 4 * word;
        words[word] = four[0] | four[1] << 8 | four[2] << 16 | four[3] << 24;
    }
}
