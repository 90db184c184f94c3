// Runs a model with the stock llama.cpp of protocol 8.0.0 as a script says: `arch_driver MODEL OUT [ENDPOINT...]`.
//
// The script comes on standard input, a word and its numbers a line:
//   open    n_ctx n_ubatch n_seq_max kv_unified flash swa_full embeddings pooling
//   decode  n, then token position sequence output of each: the outputs' logits (or embeddings) go to OUT
//   encode  n, then token position sequence output of each, as decode; nothing goes to OUT
//   pooled  sequence: its pooled embedding goes to OUT
//   remove, add, copy   of llama_memory_seq_*: sequences, positions
//   clear
// OUT gets float32 rows, each after an int32 with its length.
#include "ggml-backend.h"
#include "ggml-rpc.h"
#include "llama.h"

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

static void fail(const std::string & why) {
    fprintf(stderr, "arch_driver: %s\n", why.c_str());
    exit(1);
}

static void put(FILE * out, const float * row, int32_t n) {
    if (!row) fail("no row");
    fwrite(&n, sizeof n, 1, out);
    fwrite(row, sizeof *row, n, out);
}

int main(int argc, char ** argv) {
    llama_backend_init();
    for (int i = 3; i < argc; i++) {
        ggml_backend_reg_t reg = ggml_backend_rpc_add_server(argv[i]);
        if (!reg) fail(std::string("no server at ") + argv[i]);
        ggml_backend_register(reg);
    }
    llama_model_params mp = llama_model_default_params();
    mp.n_gpu_layers = argc > 3 ? 999 : 0;
    llama_model * model = llama_model_load_from_file(argv[1], mp);
    if (!model) fail("the model does not load");
    FILE * out = fopen(argv[2], "wb");
    if (!out) fail("no file to write to");
    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    llama_context * ctx = nullptr;
    bool embeddings = false;
    std::string word;
    while (std::cin >> word) {
        if (word == "open") {
            llama_context_params cp = llama_context_default_params();
            int unified, flash, full, embed, pooling;
            std::cin >> cp.n_ctx >> cp.n_ubatch >> cp.n_seq_max >> unified >> flash >> full >> embed >> pooling;
            cp.n_batch = cp.n_ctx;
            cp.n_threads = cp.n_threads_batch = 2;
            cp.kv_unified = unified;
            cp.swa_full = full;
            cp.embeddings = embeddings = embed;
            cp.pooling_type = (enum llama_pooling_type) pooling;
            cp.flash_attn_type = flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
            if (ctx) llama_free(ctx);
            ctx = llama_init_from_model(model, cp);
            if (!ctx) fail("no context");
        } else if (word == "decode" || word == "encode") {
            int n;
            std::cin >> n;
            llama_batch batch = llama_batch_init(n, 0, 1);
            batch.n_tokens = n;
            for (int i = 0; i < n; i++) {
                int seq, output;
                std::cin >> batch.token[i] >> batch.pos[i] >> seq >> output;
                batch.n_seq_id[i] = 1;
                batch.seq_id[i][0] = seq;
                batch.logits[i] = output;
            }
            const bool encodes = word == "encode";
            const int code = encodes ? llama_encode(ctx, batch) : llama_decode(ctx, batch);
            if (code) fail("llama_" + word + " returned " + std::to_string(code));
            for (int i = 0; i < n && !encodes; i++) {
                if (!batch.logits[i]) continue;
                if (!embeddings) put(out, llama_get_logits_ith(ctx, i), n_vocab);
                else if (llama_pooling_type(ctx) == LLAMA_POOLING_TYPE_NONE)
                    put(out, llama_get_embeddings_ith(ctx, i), llama_model_n_embd_out(model));
            }
            llama_batch_free(batch);
        } else if (word == "pooled") {
            int seq;
            std::cin >> seq;
            const bool rank = llama_pooling_type(ctx) == LLAMA_POOLING_TYPE_RANK;
            put(out, llama_get_embeddings_seq(ctx, seq),
                rank ? llama_model_n_cls_out(model) : llama_model_n_embd_out(model));
        } else if (word == "remove") {
            int s, a, b;
            std::cin >> s >> a >> b;
            if (!llama_memory_seq_rm(llama_get_memory(ctx), s, a, b)) fail("tokens were not removed");
        } else if (word == "add") {
            int s, a, b, by;
            std::cin >> s >> a >> b >> by;
            llama_memory_seq_add(llama_get_memory(ctx), s, a, b, by);
        } else if (word == "copy") {
            int s, d;
            std::cin >> s >> d;
            llama_memory_seq_cp(llama_get_memory(ctx), s, d, -1, -1);
        } else if (word == "clear") {
            llama_memory_clear(llama_get_memory(ctx), true);
        } else {
            fail("what is " + word + "?");
        }
    }
    fclose(out);
    if (ctx) llama_free(ctx);
    llama_model_free(model);
    return 0;
}
