// What a vocabulary of the stock llama.cpp of protocol 8.0.0 says, a request a line on standard input, an answer a line:
//   tokenize PATH ADD_SPECIAL PARSE_SPECIAL HEX   ids
//   describe PATH                                 n bos eos sep pad nl add_bos add_eos add_sep, then for each token whether it ends
//                                                 a generation, whether it is a control token, its bytes in hexadecimal with
//                                                 special tokens shown, and without
// Texts are hexadecimal, so that they may hold anything.
#include "llama.h"

#include <cstdio>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

static std::map<std::string, llama_model *> models;

static const llama_vocab * vocab_of(const std::string & path) {
    if (!models.count(path)) {
        llama_model_params params = llama_model_default_params();
        params.vocab_only = true;
        models[path] = llama_model_load_from_file(path.c_str(), params);
        if (!models[path]) exit(1);
    }
    return llama_model_get_vocab(models[path]);
}

static std::string hex_of(const char * data, int n) {
    static const char digits[] = "0123456789abcdef";
    std::string out = ".";
    for (int i = 0; i < n; i++) {
        out += digits[(unsigned char) data[i] >> 4];
        out += digits[data[i] & 15];
    }
    return out;
}

int main() {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    std::string line;
    while (std::getline(std::cin, line)) {
        std::istringstream in(line);
        std::string word, path, hex;
        in >> word >> path;
        const llama_vocab * vocab = vocab_of(path);
        std::ostringstream out;
        if (word == "tokenize") {
            int add, parse;
            in >> add >> parse >> hex;
            std::string text;
            for (size_t i = 1; i + 1 < hex.size(); i += 2) text += (char) std::stoi(hex.substr(i, 2), nullptr, 16);
            std::vector<llama_token> ids(4 * text.size() + 16);
            const int n = llama_tokenize(vocab, text.data(), text.size(), ids.data(), ids.size(), add, parse);
            if (n < 0) return 1;
            for (int i = 0; i < n; i++) out << ids[i] << ' ';
        } else {
            const int n = llama_vocab_n_tokens(vocab);
            out << n << ' ' << llama_vocab_bos(vocab) << ' ' << llama_vocab_eos(vocab) << ' ' << llama_vocab_sep(vocab)
                << ' ' << llama_vocab_pad(vocab) << ' ' << llama_vocab_nl(vocab) << ' ' << llama_vocab_get_add_bos(vocab)
                << ' ' << llama_vocab_get_add_eos(vocab) << ' ' << llama_vocab_get_add_sep(vocab);
            std::vector<char> piece(1 << 16);
            for (int i = 0; i < n; i++) {
                out << ' ' << llama_vocab_is_eog(vocab, i) << ' ' << llama_vocab_is_control(vocab, i);
                for (bool special : {true, false})
                    out << ' ' << hex_of(piece.data(), llama_token_to_piece(vocab, i, piece.data(), piece.size(), 0, special));
            }
        }
        std::cout << out.str() << std::endl;
    }
    for (auto & one : models) llama_model_free(one.second);
    return 0;
}
