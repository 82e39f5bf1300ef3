/* llama.cpp's side: the logits of given windows of token ids, as float32, to standard output.
 *
 *   llama-logits MODEL.gguf WINDOWS THREADS
 *
 * WINDOWS is binary: int32 how many, int32 how long, then the ids. Each window is decoded by itself in one batch, with
 * scores wanted at every position. */
#include <llama.h>
#include <ggml-backend.h>
#include <stdio.h>
#include <stdlib.h>

static void quiet(enum ggml_log_level level, const char *text, void *data) {
    (void)data;
    if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static int fail(const char *what) {
    fprintf(stderr, "llama-logits: %s\n", what);
    return 1;
}

int main(int argc, char **argv) {
    if (argc != 4) return fail("MODEL.gguf WINDOWS THREADS");
    int32_t sizes[2];
    FILE *file = fopen(argv[2], "rb");
    if (!file || fread(sizes, sizeof(int32_t), 2, file) != 2) return fail("no windows");
    const int windows = sizes[0], length = sizes[1];
    int32_t *ids = malloc(sizeof(int32_t) * windows * length);
    if (fread(ids, sizeof(int32_t), (size_t)windows * length, file) != (size_t)windows * length) return fail("short");

    llama_log_set(quiet, NULL);
    ggml_backend_load_all();
    llama_backend_init();
    struct llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) return fail("the model cannot be loaded");
    struct llama_context_params settings = llama_context_default_params();
    settings.n_ctx = settings.n_batch = settings.n_ubatch = length;
    settings.n_threads = settings.n_threads_batch = atoi(argv[3]);
    struct llama_context *context = llama_init_from_model(model, settings);
    if (!context) return fail("no context");
    const int words = llama_vocab_n_tokens(llama_model_get_vocab(model));
    fwrite(&words, sizeof(int32_t), 1, stdout);

    struct llama_batch batch = llama_batch_init(length, 0, 1);
    batch.n_tokens = length;
    for (int window = 0; window < windows; window++) {
        for (int at = 0; at < length; at++) {
            batch.token[at] = ids[window * length + at];
            batch.pos[at] = at;
            batch.n_seq_id[at] = 1;
            batch.seq_id[at][0] = 0;
            batch.logits[at] = 1;
        }
        llama_memory_clear(llama_get_memory(context), true);
        if (llama_decode(context, batch)) return fail("decoding failed");
        for (int at = 0; at < length; at++) fwrite(llama_get_logits_ith(context, at), sizeof(float), words, stdout);
    }
    return fflush(stdout) ? fail("nobody reads") : 0;
}
