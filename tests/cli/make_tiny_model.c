/* make_tiny_model FOLDER [KIND]: see tiny_model.h and tiny_bert.h. */
#include "cli/tiny_bert.h"

int main(int argc, char **argv)
{
    if (argc < 2) {
        fputs("usage: make_tiny_model FOLDER [plain | nan | vocabulary | no-bos | bert | "
              "bert-dense-module | bert-plain]\n",
              stderr);
        return 2;
    }
    const char *kind = argc > 2 ? argv[2] : "plain";
    bool made = strncmp(kind, "bert", 4) == 0 ? tiny_bert_write(argv[1], kind)
                                              : tiny_model_write(argv[1], kind);
    return made ? 0 : 1;
}
