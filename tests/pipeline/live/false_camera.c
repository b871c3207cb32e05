/* A false USB camera for LD_PRELOAD: programs that open /dev/video42 meet a V4L2 camera of two sizes in YUYV.
 *
 * The file that the variable FALSE_CAMERA names says how the camera fares at this moment, in one word:
 *   run        it sends pictures, 30 a second
 *   absent     there is no such device
 *   busy       another program has it
 *   unplugged  it goes away while it is read
 *   mute       it is there and sends nothing
 * Source of the interface: the kernel's include/uapi/linux/videodev2.h and its documentation of the streaming I/O methods.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

enum { BUFFERS = 4, LARGEST = 640 * 480 * 2, RATE = 30 };

static const struct { unsigned width, height; } SIZES[] = {{640, 480}, {320, 240}};

static struct {
    int file, memory;          /* what stands for the device, and the pictures' memory */
    unsigned width, height, count, number;
    unsigned queue[BUFFERS];   /* buffers that wait to be filled, the oldest first */
    unsigned queued;
    struct timespec next;
} camera = {-1, -1, 640, 480, 0, 0, {0}, 0, {0, 0}};

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int is(const char *word) {
    char text[32] = "absent";
    const char *path = getenv("FALSE_CAMERA");
    int file = path ? REAL(open)(path, O_RDONLY) : -1;
    if (file >= 0) {
        ssize_t length = read(file, text, sizeof text - 1);
        text[length > 0 ? length : 0] = 0;
        close(file);
    }
    return strcmp(text, word) == 0;
}

static int fail(int code) {
    errno = code;
    return -1;
}

static int plug_in(void) {
    if (is("absent") || is("unplugged")) return fail(ENOENT);
    if (is("busy")) return fail(EBUSY);
    camera.file = memfd_create("camera", 0);
    camera.number = camera.queued = 0;
    return camera.file;
}

static int opened(const char *name, const char *path, int flags, mode_t mode) {
    if (path && strcmp(path, "/dev/video42") == 0) return plug_in();
    return ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, name))(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return opened("open", path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return opened("open64", path, flags, mode);
}

int close(int file) {
    if (file >= 0 && file == camera.file) camera.file = -1;
    return REAL(close)(file);
}

int fstat(int file, struct stat *about) {
    if (file < 0 || file != camera.file) return REAL(fstat)(file, about);
    memset(about, 0, sizeof *about);
    about->st_mode = S_IFCHR | 0660;
    about->st_rdev = makedev(81, 42);
    return 0;
}

static void *mapped(const char *name, void *at, size_t length, int protection, int flags, int file, off_t offset) {
    if (file >= 0 && file == camera.file) file = camera.memory;
    return ((void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, name))(
        at, length, protection, flags, file, offset);
}

void *mmap(void *at, size_t length, int protection, int flags, int file, off_t offset) {
    return mapped("mmap", at, length, protection, flags, file, offset);
}

void *mmap64(void *at, size_t length, int protection, int flags, int file, off_t offset) {
    return mapped("mmap64", at, length, protection, flags, file, offset);
}

int poll(struct pollfd *files, nfds_t count, int timeout) {
    if (count != 1 || files->fd < 0 || files->fd != camera.file) return REAL(poll)(files, count, timeout);
    files->revents = POLLIN;
    return 1;
}

static void set_format(struct v4l2_pix_format *format) {
    format->width = camera.width;
    format->height = camera.height;
    format->pixelformat = V4L2_PIX_FMT_YUYV;
    format->field = V4L2_FIELD_NONE;
    format->bytesperline = camera.width * 2;
    format->sizeimage = camera.width * camera.height * 2;
    format->colorspace = V4L2_COLORSPACE_SRGB;
}

static int take_picture(struct v4l2_buffer *buffer) {
    while (is("mute")) usleep(10000);
    if (!is("run")) return fail(ENODEV);
    if (camera.queued == 0) return fail(EAGAIN);
    camera.next.tv_nsec += 1000000000 / RATE;
    if (camera.next.tv_nsec >= 1000000000) {
        camera.next.tv_nsec -= 1000000000;
        camera.next.tv_sec++;
    }
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &camera.next, NULL);
    unsigned index = camera.queue[0], size = camera.width * camera.height * 2;
    memmove(camera.queue, camera.queue + 1, --camera.queued * sizeof camera.queue[0]);
    unsigned char *picture = REAL(mmap)(NULL, LARGEST, PROT_WRITE, MAP_SHARED, camera.memory, (off_t)index * LARGEST);
    memset(picture, camera.number * 8 & 255, size);
    munmap(picture, LARGEST);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    buffer->index = index;
    buffer->bytesused = size;
    buffer->length = LARGEST;
    buffer->sequence = camera.number++;
    buffer->timestamp.tv_sec = now.tv_sec;
    buffer->timestamp.tv_usec = now.tv_nsec / 1000;
    buffer->flags = V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC;
    buffer->field = V4L2_FIELD_NONE;
    return 0;
}

static int answer(unsigned request, void *data) {
    switch (request) {
    case VIDIOC_QUERYCAP: {
        struct v4l2_capability *about = data;
        memset(about, 0, sizeof *about);
        strcpy((char *)about->driver, "false");
        strcpy((char *)about->card, "False camera");
        about->capabilities = about->device_caps = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
        about->capabilities |= V4L2_CAP_DEVICE_CAPS;
        return 0;
    }
    case VIDIOC_ENUM_FMT: {
        struct v4l2_fmtdesc *format = data;
        if (format->index || format->type != V4L2_BUF_TYPE_VIDEO_CAPTURE) return fail(EINVAL);
        strcpy((char *)format->description, "YUYV 4:2:2");
        format->pixelformat = V4L2_PIX_FMT_YUYV;
        format->flags = 0;
        return 0;
    }
    case VIDIOC_ENUM_FRAMESIZES: {
        struct v4l2_frmsizeenum *size = data;
        if (size->index >= 2 || size->pixel_format != V4L2_PIX_FMT_YUYV) return fail(EINVAL);
        size->type = V4L2_FRMSIZE_TYPE_DISCRETE;
        size->discrete.width = SIZES[size->index].width;
        size->discrete.height = SIZES[size->index].height;
        return 0;
    }
    case VIDIOC_ENUM_FRAMEINTERVALS: {
        struct v4l2_frmivalenum *interval = data;
        if (interval->index >= 2) return fail(EINVAL);
        interval->type = V4L2_FRMIVAL_TYPE_DISCRETE;
        interval->discrete.numerator = 1;
        interval->discrete.denominator = RATE >> interval->index;
        return 0;
    }
    case VIDIOC_S_FMT: case VIDIOC_TRY_FMT: case VIDIOC_G_FMT: {
        struct v4l2_format *format = data;
        if (format->type != V4L2_BUF_TYPE_VIDEO_CAPTURE) return fail(EINVAL);
        if (request == VIDIOC_S_FMT && format->fmt.pix.width) {
            int small = format->fmt.pix.width <= SIZES[1].width;
            camera.width = SIZES[small].width;
            camera.height = SIZES[small].height;
        }
        set_format(&format->fmt.pix);
        return 0;
    }
    case VIDIOC_S_PARM: case VIDIOC_G_PARM: {
        struct v4l2_streamparm *parameters = data;
        parameters->parm.capture.capability = V4L2_CAP_TIMEPERFRAME;
        parameters->parm.capture.timeperframe.numerator = 1;
        parameters->parm.capture.timeperframe.denominator = RATE;
        return 0;
    }
    case VIDIOC_ENUMINPUT: {
        struct v4l2_input *input = data;
        if (input->index) return fail(EINVAL);
        strcpy((char *)input->name, "Camera 1");
        input->type = V4L2_INPUT_TYPE_CAMERA;
        return 0;
    }
    case VIDIOC_G_INPUT: *(int *)data = 0; return 0;
    case VIDIOC_S_INPUT: return 0;
    case VIDIOC_REQBUFS: {
        struct v4l2_requestbuffers *wanted = data;
        if (wanted->count > BUFFERS) wanted->count = BUFFERS;
        camera.count = wanted->count;
        if (camera.memory < 0) camera.memory = memfd_create("pictures", 0);
        return ftruncate(camera.memory, (off_t)LARGEST * BUFFERS);
    }
    case VIDIOC_QUERYBUF: {
        struct v4l2_buffer *buffer = data;
        if (buffer->index >= camera.count) return fail(EINVAL);
        buffer->length = LARGEST;
        buffer->m.offset = buffer->index * LARGEST;
        buffer->flags = 0;
        return 0;
    }
    case VIDIOC_QBUF:
        if (camera.queued == BUFFERS) return fail(EINVAL);
        camera.queue[camera.queued++] = ((struct v4l2_buffer *)data)->index;
        return 0;
    case VIDIOC_DQBUF: return take_picture(data);
    case VIDIOC_STREAMON: clock_gettime(CLOCK_MONOTONIC, &camera.next); return 0;
    case VIDIOC_STREAMOFF: camera.queued = 0; return 0;
    }
    return fail(EINVAL);
}

int ioctl(int file, unsigned long request, ...) {
    va_list more;
    va_start(more, request);
    void *data = va_arg(more, void *);
    va_end(more);
    if (file < 0 || file != camera.file) return REAL(ioctl)(file, request, data);
    return answer((unsigned)request, data);
}
